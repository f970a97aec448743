"""Build the extension with its CUDA kernels against a CUDA build of PyTorch, link it, and import it: needs no GPU.

    make cuda-link       # needs a CUDA toolkit of the release of torch's CUDA, and downloads some gigabytes once

Compiling tells nothing of symbols that are missing, nor of operators that nobody has registered; this does.
"""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from . import toolchain

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = ROOT / "build" / "cuda-link"
TREE = ENVIRONMENT / "tree"  # a copy of the sources, whose objects are kept from run to run
PYTHON = ENVIRONMENT / "bin" / "python"

# `===` leaves out builds for other devices, whose versions have a suffix.
TORCH = "torch==={}"
TOOLS = ("setuptools>=77", "wheel", "ninja", "pybind11>=2.13", "numpy>=1.26", "rich>=13", "typer>=0.15")

CHECK = """
import sys
import torch
import xattr_cuda as xa
from xattr_cuda.ops import gpu

wanted = set(sys.argv[1:])
assert xa.ops.extension is not None, xa.ops.unavailable("cpu")
assert wanted <= gpu.NATIVE, f"not registered for CUDA: {wanted - gpu.NATIVE}"
for name in wanted:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"xattr_below::{name}", "CUDA"), name
if not torch.cuda.is_available():
    assert "sees no GPU" in xa.ops.unavailable("cuda"), xa.ops.unavailable("cuda")
h, bits = xa.ops.relu_mask(torch.randn(3, 33))
assert bits.shape == (3, 2)
print("kernels for CUDA, compiled by", xa.ops.extension.build_info()["cuda"] + ":", *sorted(wanted))
"""


def operators() -> list[str]:
    """Those that have a kernel in CUDA C++, by the glue that they have."""
    from xattr_cuda.ops import SCHEMAS

    return [name for name in SCHEMAS if (ROOT / "csrc" / "cuda" / f"{name}.cu").exists()]


def _run(*command: object, **environment: str) -> None:
    path = os.pathsep.join([str(PYTHON.parent), os.environ["PATH"]])  # where ninja is
    env = {**os.environ, "PATH": path, **environment}
    subprocess.run([str(part) for part in command], check=True, cwd=ENVIRONMENT, env=env)


def main() -> int:
    headers = toolchain.headers()
    if headers is None:
        print("no CUDA toolkit was found: set CUDA_HOME, or put nvcc on PATH")
        return 1
    import torch

    if not PYTHON.exists():
        venv.create(ENVIRONMENT, with_pip=True)
    release = torch.__version__.partition("+")[0]
    _run(PYTHON, "-m", "pip", "install", TORCH.format(release), *TOOLS)
    built = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "*.so", "__pycache__", "tests", "docs")
    shutil.copytree(ROOT, TREE, ignore=built, dirs_exist_ok=True)
    install = (PYTHON, "-m", "pip", "install", "-v", "--no-build-isolation", "--no-deps", "--force-reinstall", TREE)
    _run(*install, FORCE_CUDA="1", CUDA_HOME=str(toolchain.root()))
    _run(PYTHON, "-W", "error", "-P", "-c", CHECK, *operators())
    return 0


if __name__ == "__main__":
    sys.exit(main())
