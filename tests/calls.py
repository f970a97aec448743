"""One call of every operator whose kernels a graph of torch.compile may have, of a ragged size."""

from typing import Any

import torch
from torch import Tensor

import xattr_cuda as xa

WINDOW = ((2, 2), (2, 2), (0, 0), (1, 1))


def drawn(op: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> tuple[Any, ...]:
    """Arguments of an operator."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, device=device).to(dtype)

    a, b, bits = normal(9, 33), normal(9, 33), xa.kernels.reference.relu_mask(normal(9, 33))[1]
    image = normal(2, 3, 6, 8)
    out, idx = xa.kernels.reference.max_pool(image, *WINDOW, False)
    return {
        "relu_mask": (a, normal(33).abs()),
        "mask_mul": (a.T.contiguous().T, bits),
        "add_relu_mask": (a, b),
        "linear_relu_mask": (a, normal(40, 33)),
        "matmul_mask": (normal(9, 20), normal(33, 20).T, bits),
        "dual_weight_grad": (a, b, b, a),
        "max_pool": (image, *WINDOW, False),
        "pool_pull": (out, idx, (2, 3, 6, 8), *WINDOW),
        "pool_push": (image, idx, *WINDOW),
        "input_times_gradient": (a, b, normal(9)),
        "gini": (normal(100).abs(),),
    }[op]
