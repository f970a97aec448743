"""BatchNorm without its mean and bias: folded into the weight before it, a fixed scale, or an uncentred relative."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..nn import BatchScale1d, BatchScale2d, BatchScale3d
from ..sweep import LayerError, NotHomogeneousError, UnsupportedLayerError
from .adjacent import products_before
from .edit import Edit, names_of
from .scale import ChannelScale

_RELATIVES = ((nn.BatchNorm1d, BatchScale1d), (nn.BatchNorm2d, BatchScale2d), (nn.BatchNorm3d, BatchScale3d))


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """The BatchNorm layers that compute what PyTorch's do, each once."""
    forwards = (_BatchNorm.forward, nn.SyncBatchNorm.forward)
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and type(m).forward in forwards]


def fold(edit: Edit) -> None:
    """Keep the scale that every BatchNorm has in evaluation, weight / sqrt(running_var + eps), and drop its shift.

    The scale goes into the weight of the layer before, where that layer feeds nothing else; otherwise a ChannelScale
    takes the place. A BatchNorm without running statistics is refused.
    """
    names, before = names_of(edit.model), products_before(edit.model)
    for norm in batch_norms(edit.model):
        name, kind = names[norm], type(norm).__name__
        if norm.running_var is None:
            edit.refused.append(_without_statistics(name, kind))
            continue
        if name in before:
            scale_outputs(edit.model.get_submodule(before[name]), evaluation_scale(norm))
            edit.replace(norm, nn.Identity(), f"Identity, folded into {before[name]}")
        else:
            edit.replace(norm, _fixed_scale(norm), "ChannelScale")


def rescale(edit: Edit) -> None:
    """Replace every BatchNorm by the BatchScale of its dimensions, with the same weight, second moment and mode."""
    names = names_of(edit.model)
    for norm in batch_norms(edit.model):
        relative: Any = next((r for k, r in _RELATIVES if isinstance(norm, k)), None)
        if relative is None:
            edit.refused.append(_without_relative(names[norm], type(norm).__name__))
            continue
        edit.replace(norm, _relative(norm, relative), relative.__name__)


def remove(edit: Edit) -> None:
    """Replace every BatchNorm by the identity."""
    for norm in batch_norms(edit.model):
        edit.replace(norm, nn.Identity(), "Identity")


def evaluation_scale(norm: _BatchNorm) -> Tensor:
    """weight / sqrt(running_var + eps), [C], in fp32 at least."""
    variance = norm.running_var
    assert variance is not None
    scale = (variance.to(torch.promote_types(variance.dtype, torch.float32)) + norm.eps).rsqrt()
    return scale if norm.weight is None else scale * norm.weight.detach()


@torch.no_grad()
def scale_outputs(product: Any, scale: Tensor) -> None:
    """Multiply the output channels of a linear or convolutional layer by `scale`, [C], in its weight."""
    weight = product.weight
    space = [1] * (weight.dim() - 2)
    if not getattr(product, "transposed", False):
        weight.copy_(weight * scale.view(-1, 1, *space))
        return
    by_group = weight.unflatten(0, (product.groups, -1))  # [groups, in / groups, out / groups, ...]
    weight.copy_((by_group * scale.view(product.groups, 1, -1, *space)).flatten(0, 1))


def _fixed_scale(norm: _BatchNorm) -> ChannelScale:
    space = next((d for k, d in ((nn.BatchNorm2d, 2), (nn.BatchNorm3d, 3)) if isinstance(norm, k)), None)
    like = norm.running_var if norm.weight is None else norm.weight
    assert like is not None
    trained = norm.weight is not None and norm.weight.requires_grad
    return ChannelScale(nn.Parameter(evaluation_scale(norm).to(like.dtype), requires_grad=trained), space)


def _relative(norm: _BatchNorm, relative: Any) -> nn.Module:
    like = next((t for t in (norm.weight, norm.running_var) if t is not None), torch.empty(0))
    settings = (norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    scale: Any = relative(*settings, device=like.device, dtype=like.dtype)
    if norm.weight is not None:
        scale.weight = norm.weight
    if norm.running_var is not None and norm.running_mean is not None:
        scale.running_square = norm.running_var + norm.running_mean.square()  # E[x^2]
        scale.num_batches_tracked = norm.num_batches_tracked
    return cast(nn.Module, scale)


def _without_statistics(name: str, kind: str) -> LayerError:
    return NotHomogeneousError(
        name,
        kind,
        "it keeps no running statistics, so there is no fixed scale to fold",
        'Use batch_norm="scale", or train it with track_running_stats=True',
    )


def _without_relative(name: str, kind: str) -> LayerError:
    return UnsupportedLayerError(
        name, kind, "there is no uncentred layer in its place", 'Use batch_norm="fold", or BatchNorm1d, 2d or 3d'
    )
