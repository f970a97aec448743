"""The layer that a folded BatchNorm leaves behind where no weight can take its scale."""

from torch import Tensor, nn


class ChannelScale(nn.Module):
    """x * weight, one factor for each channel (dimension 1).

    weight: [C], a parameter. space: how many dimensions follow the channels in x, or None where it varies.
    x: [B, C] or [B, C, ...], with `space` dimensions after C.
    """

    def __init__(self, weight: Tensor, space: int | None = None) -> None:
        super().__init__()
        self.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight)
        self.space = space

    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels of x."""
        if self.space is None:  # no branch on the dimensions of x, so that it can be traced
            return (x.transpose(1, -1) * self.weight).transpose(1, -1)
        return x * self.weight.view(-1, *[1] * self.space)

    def extra_repr(self) -> str:
        """The number of channels."""
        return str(self.weight.shape[0])
