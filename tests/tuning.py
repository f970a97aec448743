"""What the tests of tuning share: the emulated device, and a choice for it that a file may hold."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from xattr_cuda.kernels.triton import configs, tuned

CPU = torch.device("cpu")


def a_choice():
    request = tuned.Request("elementwise", "relu_mask", "float32", "", "1x4096")
    return request, configs.candidates("elementwise")[-1]
