"""linear_relu_mask: bias-free linear layer with the activation and its mask as epilogue."""

from torch import Tensor
from torch.nn.functional import linear

from .relu_mask import relu_mask


def linear_relu_mask(x: Tensor, weight: Tensor, slope: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """relu_mask(x @ weight.T).

    x: [..., K]; weight: [N, K]; slope: None, [1] or [N].
    Returns h [..., N] and bits, int32 [..., ceil(N / 32)].
    """
    return relu_mask(linear(x, weight), slope)
