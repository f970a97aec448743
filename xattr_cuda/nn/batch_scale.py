"""Batch normalisation without centring and without bias, through which attributions stay complete."""

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn


class Setting(NamedTuple):
    """What a BatchScale layer does at present, besides its parameters and statistics."""

    ranks: tuple[int, ...]  # how many dimensions its input may have
    training: bool
    eps: float
    momentum: float | None
    tracking: bool


def second_moment(x: Tensor) -> Tensor:
    """Mean square of every channel: x [B, C, ...] to [C], in fp32 at least; zero where there are no elements."""
    wide = x.double() if x.dtype == torch.float64 else x.float()
    others = [d for d in range(x.dim()) if d != 1]
    return wide.square().sum(others) / max(x.numel() // x.shape[1], 1)


def update_running(running_square: Tensor, num_batches_tracked: Tensor, moment: Tensor, momentum: float | None) -> None:
    """Count a batch and move running_square [C] towards its moment [C], both in place.

    momentum: the weight of this batch; None for the average of all batches so far.
    """
    with torch.no_grad():
        num_batches_tracked.add_(1)
        step = num_batches_tracked.to(moment.dtype).reciprocal() if momentum is None else momentum
        running_square.copy_(torch.lerp(running_square.to(moment.dtype), moment, step))


def find_factor(x: Tensor, running_square: Tensor, num_batches_tracked: Tensor, setting: Setting) -> Tensor:
    """1 / sqrt(E[x^2] + eps) of every channel, [C], in fp32 at least and constant to autograd.

    E is the batch's own second moment in training or without tracking, the running one otherwise. In training with
    tracking a batch that is not empty updates the running one: call this once a step.
    """
    if setting.tracking and not setting.training:
        moment = running_square.double() if x.dtype == torch.float64 else running_square.float()
    else:
        moment = second_moment(x.detach())
        if setting.tracking and x.numel():
            update_running(running_square, num_batches_tracked, moment, setting.momentum)
    return (moment.detach() + setting.eps).rsqrt()


def scale(x: Tensor, weight: Tensor, factor: Tensor) -> Tensor:
    """x [B, C, ...] times weight [C] and factor [C], rounded once, in the dtype of x."""
    return (x * (weight * factor).view(-1, *[1] * (x.dim() - 2))).to(x.dtype)


def check_input(x: Tensor, channels: int, ranks: tuple[int, ...], where: str) -> None:
    """Raise ValueError unless x is a floating [B, channels, ...] with one of the ranks; `where` names the layer."""
    if x.dim() not in ranks or x.shape[1] != channels or not x.is_floating_point():
        wanted = " or ".join(f"[B, {channels}{''.join(', ' + d for d in 'DHW'[-r + 2 :] if r > 2)}]" for r in ranks)
        raise ValueError(f"{where} wants a floating-point {wanted}, got {list(x.shape)} of {x.dtype}")


class _BatchScale(nn.Module):
    """What BatchScale1d, 2d and 3d have in common; they differ in the shapes that they take."""

    ranks: ClassVar[tuple[int, ...]]
    weight: Tensor
    running_square: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if num_features < 1:
            raise ValueError(f"`num_features` is {num_features}; wanted a positive integer, the number of channels")
        if not eps > 0:
            raise ValueError(f"`eps` is {eps}; wanted a positive number, so that a channel of zeros stays zero")
        if momentum is not None and not 0 <= momentum <= 1:
            raise ValueError(f"`momentum` is {momentum}; wanted a number from 0 to 1, or None for the average")
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        ones = torch.ones(num_features, device=device, dtype=dtype)
        # Without a learned weight or tracking the tensors are there all the same, but stay out of the state dict.
        if affine:
            self.weight = nn.Parameter(ones)
        else:
            self.register_buffer("weight", ones, persistent=False)
        count = torch.zeros((), device=device, dtype=torch.long)
        self.register_buffer("running_square", ones.clone(), persistent=track_running_stats)
        self.register_buffer("num_batches_tracked", count, persistent=track_running_stats)

    def reset_running_stats(self) -> None:
        """Forget all batches: the running second moment is one again."""
        self.running_square.fill_(1)
        self.num_batches_tracked.zero_()

    def reset_parameters(self) -> None:
        """Set the weight to one and forget all batches."""
        self.reset_running_stats()
        nn.init.ones_(self.weight)

    @property
    def setting(self) -> Setting:
        """What the layer does at present."""
        return Setting(self.ranks, self.training, self.eps, self.momentum, self.track_running_stats)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, ...] to the same shape and dtype."""
        check_input(x, self.num_features, self.ranks, type(self).__name__)
        factor = find_factor(x, self.running_square, self.num_batches_tracked, self.setting)
        return scale(x, self.weight, factor)

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"track_running_stats={self.track_running_stats}"
        )


class BatchScale1d(_BatchScale):
    """Batch normalisation for X-DNNs: x * weight / sqrt(E[x^2] + eps) for every channel, of [B, C] or [B, C, W].

    Nothing is centred and there is no bias. E is the mean over batch and positions: in training of the batch itself,
    in evaluation a running one (buffers `running_square` and `num_batches_tracked`), and of the batch in both modes
    if track_running_stats is False. momentum is the weight of a batch in the running moment, None for the average of
    all batches. weight [C] starts at one, and stays there unless affine.

    Statistics are held constant: gradients and attributions do not flow through them. For a given batch the layer is
    therefore linear in x and the attribution is complete in both modes. In evaluation F(c x) = c F(x) as for any
    X-DNN. In training that does not hold, because another input has other statistics: F(c x) is F(x) up to eps, and
    the attribution is complete for the linear map of the batch at hand, not equal to Integrated Gradients along
    scaled inputs. The gradient is not BatchNorm's, which differentiates its statistics.

    Statistics are taken in fp32 at least and each process takes its own. A batch of one sample is allowed; an empty
    one leaves the running moment alone. device and dtype are those of the parameter and the running moment.
    """

    ranks = (2, 3)


class BatchScale2d(_BatchScale):
    """BatchScale1d, which explains it, for images [B, C, H, W]."""

    ranks = (4,)


class BatchScale3d(_BatchScale):
    """BatchScale1d, which explains it, for volumes [B, C, D, H, W]."""

    ranks = (5,)
