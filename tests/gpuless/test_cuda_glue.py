"""The glue of csrc/cuda: it compiles as it is shipped, and over kernels on the CPU it computes what it should."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gpuless import toolchain

ROOT = Path(__file__).resolve().parents[2]
GLUE, SHIM = ROOT / "tests" / "gpuless" / "glue", ROOT / "tests" / "gpuless" / "shim"
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
TORCH = Path(torch.__file__).parent
INCLUDES = [part for folder in ("include", "include/torch/csrc/api/include") for part in ("-isystem", TORCH / folder)]


def run(*command, **environment):
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """All glue in one library, over kernels that g++ compiles."""
    path = tmp_path_factory.mktemp("glue") / "glue.so"
    places = ["-I", GLUE, "-I", SHIM, "-I", ROOT / "csrc", "-I", ROOT / "kernels", "-isystem", toolchain.headers()]
    flags = ["-std=c++20", "-O1", "-shared", "-fPIC", "-w", "-include", SHIM / "cuemu.h"]
    libraries = ["-L", TORCH / "lib", "-ltorch_cpu", "-lc10"]
    run(toolchain.gxx(), *flags, *places, *INCLUDES, GLUE / "glue.cpp", "-o", path, *libraries)
    return path


@toolchain.needs_shim
@pytest.mark.parametrize("check", ["check.py", "check_mlp.py"])
def test_operators_run_through_their_glue(library, seed, check):
    said = run(sys.executable, GLUE / check, library, seed, PYTHONPATH=str(ROOT / "tests"), NO_EXT="1")
    assert said.split() == ["works"]


@toolchain.needs_nvcc
@pytest.mark.skipif(toolchain.root() is None, reason="the toolkit of nvcc was not found")
def test_the_glue_compiles_with_nvcc(tmp_path):
    """All of it as one file, which reads the headers of PyTorch once."""
    # A CPU build of PyTorch lacks one header of macros, which may be empty.
    stand_in = tmp_path / "c10" / "cuda" / "impl" / "cuda_cmake_macros.h"
    stand_in.parent.mkdir(parents=True)
    stand_in.write_text("")
    whole = tmp_path / "glue.cu"
    whole.write_text("".join(f'#include "cuda/{source.name}"\n' for source in SOURCES))
    # The kernels in it are compiled as they are shipped by other tests; here they need not be fast.
    target = ["-arch=compute_80", "-code=compute_80", "-Xcicc", "-O0"]
    flags = ["-std=c++20", *target, "--expt-relaxed-constexpr", "-diag-suppress", "3189", *toolchain.MACROS]
    places = ["-I", tmp_path, "-I", ROOT / "csrc", "-I", ROOT / "kernels", *INCLUDES]
    run(toolchain.nvcc(), *flags, *places, "-c", whole, "-o", tmp_path / "glue.o")


def test_every_glue_has_a_kernel_of_its_name():
    from gpuless.launchers import OPERATORS
    from xattr_cuda.ops import SCHEMAS

    glued = {path.stem for path in SOURCES} & set(SCHEMAS)
    kernels = {path.stem for path in (ROOT / "kernels" / "cuda").glob("*.cuh")} & set(SCHEMAS)
    assert set(OPERATORS) <= glued <= kernels
