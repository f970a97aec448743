"""Where the CUDA toolkit and the C++ compiler are, asked of themselves."""

import functools
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest


@functools.cache
def nvcc() -> str | None:
    """The path of nvcc: that of CUDA_HOME, or on PATH."""
    home = os.environ.get("CUDA_HOME")
    own = Path(home, "bin", "nvcc") if home else None
    return str(own) if own and own.exists() else shutil.which("nvcc")


MACROS = [f"-D__CUDA_NO_{what}__" for what in ("HALF_OPERATORS", "HALF_CONVERSIONS", "HALF2_OPERATORS")]
MACROS += ["-D__CUDA_NO_BFLOAT16_CONVERSIONS__"]
"""What PyTorch's builds of extensions define."""

NVCC_FLAGS = ["-O3", "-std=c++17", *MACROS, "-Werror", "all-warnings"]
NVCC_FLAGS += ["-Xptxas", "-warn-spills,-warn-lmem-usage,-Werror"]


@functools.cache
def root() -> Path | None:
    """The folder of the toolkit. nvcc on PATH may be a script that lies elsewhere, so it is asked."""
    if nvcc() is None:
        return None
    asked = subprocess.run([nvcc(), "--dryrun", "-E", "-x", "cu", os.devnull], capture_output=True, text=True)
    found = re.search(r"^#\$ TOP=(.*)$", asked.stderr + asked.stdout, re.MULTILINE)
    return Path(found[1].strip()).resolve() if found else None


@functools.cache
def headers() -> Path | None:
    """The folder of cuda_fp16.h."""
    folder = root()
    folders = [folder / "include", *folder.glob("targets/*/include")] if folder else []
    return next((folder.resolve() for folder in folders if (folder / "cuda_fp16.h").exists()), None)


def gxx() -> str | None:
    """The C++ compiler."""
    return shutil.which(os.environ.get("CXX") or "g++")


needs_nvcc = pytest.mark.skipif(nvcc() is None, reason="nvcc is not installed")
needs_shim = pytest.mark.skipif(headers() is None or gxx() is None, reason="needs g++ and the headers of CUDA")
