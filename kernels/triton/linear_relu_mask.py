"""linear_relu_mask: a linear layer whose epilogue is the activation and its packed mask. Twin of the reference."""

import torch
from torch import Tensor

from ..reference.bits import words
from .products import ACTIVATE, multiply, variants


def linear_relu_mask(x: Tensor, weight: Tensor, slope: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """relu_mask(x @ weight.T). Shapes and meaning: the reference's; x in fp32, bf16 or fp16."""
    bits = torch.empty((*x.shape[:-1], words(weight.shape[0])), dtype=torch.int32, device=x.device)
    return multiply(x, weight.T, bits, slope, ACTIVATE), bits


VARIANTS = list(variants(ACTIVATE, transposed=True, what="linear"))
