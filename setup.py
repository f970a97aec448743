"""What to build. Metadata is in pyproject.toml.

Environment: NO_EXT=1 builds no extension (the package then runs on its reference); FORCE_CUDA=1 insists on CUDA and
FORCE_CUDA=0 leaves it out; CUDA_HOME, TORCH_CUDA_ARCH_LIST and MAX_JOBS mean what they mean to torch.
"""

import os
import platform
import re
import subprocess
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

try:
    import torch
    from torch.utils import cpp_extension
except ImportError:
    torch = None

ROOT = Path(__file__).parent
LEAVES = {  # the leaves of kernels/, which become subpackages of xattr_cuda.kernels
    f"xattr_cuda.kernels.{leaf.name}": f"kernels/{leaf.name}"
    for leaf in sorted((ROOT / "kernels").iterdir())
    if leaf.is_dir() and leaf.name.isidentifier() and not leaf.name.startswith("_")
}
# OpenMP is compiled for but not linked: the symbols come from the runtime that torch has loaded, so that one pool of
# threads serves both. Python asks for debug information, which is 25 times as large as the rest: -g0.
BASE_FLAGS = ["-O3", "-g0", "-fopenmp", "-Wall", "-Wno-sign-compare", "-Wno-unknown-pragmas"]
NVCC_FLAGS = ["-O3", "-diag-suppress", "3189"]  # torch's headers have a variable called `module`
ISA_FLAGS = {  # the vector code is compiled once for each; the fastest that the processor has is chosen at run time
    "DEFAULT": [],
    "AVX2": ["-mavx2", "-mfma", "-mf16c"],
    "AVX512": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c"],
}


def say(message):
    print(f"xattr_cuda: {message}", flush=True)


def relative(paths):
    return sorted(str(path.relative_to(ROOT)) for path in paths)


def use_cuda():
    """Whether to compile csrc/cuda, and why."""
    force, sources = os.environ.get("FORCE_CUDA", ""), relative((ROOT / "csrc" / "cuda").glob("*.cu"))
    missing = None
    if torch.version.cuda is None:
        missing = f"torch {torch.__version__} is a CPU build"
    elif toolkit() == (0, 0):
        missing = "no CUDA toolkit was found (set CUDA_HOME)"
    elif toolkit()[0] != int(torch.version.cuda.split(".")[0]):
        missing = f"the toolkit is CUDA {'.'.join(map(str, toolkit()))} and torch was built with {torch.version.cuda}"
    if force == "1" and missing:
        raise SystemExit(f"xattr_cuda: FORCE_CUDA=1, but {missing}")
    if force == "0" or missing:
        say(f"no CUDA kernels: {'FORCE_CUDA=0' if force == '0' else missing}")
        return []
    say(f"CUDA kernels with {cpp_extension.CUDA_HOME} for {architectures()}")
    return sources


def toolkit():
    """The version of the toolkit, (major, minor); (0, 0) where its compiler or its headers are missing."""
    home = Path(cpp_extension.CUDA_HOME or "/nowhere")
    nvcc, header = home / "bin" / "nvcc", home / "include" / "cuda_runtime_api.h"
    if not nvcc.exists() or not header.exists():
        return 0, 0
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    found = re.search(r"release (\d+)\.(\d+)", said)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def architectures():
    """What to compile the CUDA kernels for; the machine that builds may have no GPU, or another one."""
    known = "8.0;9.0;10.0+PTX" if toolkit() >= (12, 8) else "8.0;9.0+PTX"
    return os.environ.setdefault("TORCH_CUDA_ARCH_LIST", known)


def isas():
    return list(ISA_FLAGS) if platform.machine().lower() in ("x86_64", "amd64") else ["DEFAULT"]


def torch_extension():
    """The extension xattr_cuda._C: the glue of csrc; the vector code is added by BuildExtension."""
    cuda_sources = use_cuda()
    kind = cpp_extension.CUDAExtension if cuda_sources else cpp_extension.CppExtension
    sources = relative((ROOT / "csrc").glob("*.cpp"))
    macros = [("XATTR_" + isa, None) for isa in isas()] + ([("XATTR_CUDA", None)] if cuda_sources else [])
    say(f"C++ extension against torch {torch.__version__} with vector code for {', '.join(isas())}")
    return kind(
        "xattr_cuda._C",
        sources + cuda_sources,
        include_dirs=[str(ROOT / "csrc"), str(ROOT / "kernels")],
        define_macros=macros,
        extra_compile_args={"cxx": BASE_FLAGS, "nvcc": NVCC_FLAGS},
    )


class NeedsTorch(build_ext):
    """Stands in for the real build where torch is not importable."""

    def run(self):
        raise SystemExit(
            "xattr_cuda: torch cannot be imported, and the C++ extension must be compiled against the torch that it "
            "will run with.\nInstall torch and ninja, then: pip install --no-build-isolation xattr_cuda\n"
            "or set NO_EXT=1 for a package that runs on its PyTorch reference."
        )


def build_extension_class():
    class BuildExtension(cpp_extension.BuildExtension):
        """Compiles csrc/cpu/isa/kernels.cpp once for every instruction set, then the rest as usual."""

        def build_extension(self, ext):
            source = os.path.join("csrc", "cpu", "isa", "kernels.cpp")
            for isa in isas():
                flags = [*BASE_FLAGS, *ISA_FLAGS[isa], f"-DCPU_CAPABILITY={isa}", f"-DCPU_CAPABILITY_{isa}"]
                ext.extra_objects += self.compiler.compile(
                    [source],
                    output_dir=os.path.join(os.path.abspath(self.build_temp), isa.lower()),
                    include_dirs=ext.include_dirs,
                    extra_postargs={"cxx": flags, "nvcc": []} if self.use_ninja else flags,
                    depends=ext.depends,
                )
            super().build_extension(ext)

    return BuildExtension


def extensions():
    if os.environ.get("NO_EXT") == "1":
        say("no extension: NO_EXT=1; the package runs on its reference")
        return {}
    if torch is None:
        return {"ext_modules": [Extension("xattr_cuda._C", [])], "cmdclass": {"build_ext": NeedsTorch}}
    return {"ext_modules": [torch_extension()], "cmdclass": {"build_ext": build_extension_class()}}


setup(
    packages=[*find_packages(include=["xattr_cuda", "xattr_cuda.*"]), *LEAVES],
    package_dir=LEAVES,
    package_data={"xattr_cuda": ["py.typed"], **{leaf: ["*.h", "*.cuh"] for leaf in LEAVES}},
    **extensions(),
)
