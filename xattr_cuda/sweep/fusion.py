"""Stages of two layers: a product, and the activation that it applies on its way out. The one place for such forms.

A form that has no operator of its own runs its two layers one after the other.
"""

from collections.abc import Sequence

from torch import Tensor

from .. import ops
from .layer import Frame, Layer, Residual
from .rules.activation import ActivationRule
from .rules.arithmetic import AddRule
from .rules.linear import LinearRule
from .rules.rows import by_rows, is_channels_last


def forward_fused(
    layer: Layer, params: Sequence[Tensor], inputs: Sequence[Tensor], activation: Layer, slopes: Sequence[Tensor]
) -> tuple[Tensor, Residual]:
    """activation(layer(*inputs)) and the activation's residual."""
    assert isinstance(activation, ActivationRule)
    if isinstance(layer, LinearRule):
        h, bits = layer.forward_masked(params, inputs[0], activation.slope(slopes, inputs[0]))
        return h, (bits,)
    if isinstance(layer, AddRule) and _alike(layer, *inputs):
        a, restore = by_rows(inputs[0])
        b, _ = by_rows(inputs[1])
        h, bits = ops.add_relu_mask(a, b, activation.slope(slopes, a))
        return restore(h), (bits,)
    z, _ = layer.forward(params, *inputs)
    return activation.forward(slopes, z)


def _alike(layer: AddRule, a: Tensor, b: Tensor) -> bool:
    """Whether a sum is one of tensors of one shape in one order of memory."""
    return layer.alpha == 1 and a.shape == b.shape and a.dtype == b.dtype and is_channels_last(a) == is_channels_last(b)


def tangent_fused(layer: Layer, frame: Frame, tangents: Sequence[Tensor], activation: Layer, above: Frame) -> Tensor:
    """activation's map after the layer's."""
    assert isinstance(activation, ActivationRule)
    (bits,) = above.residual
    if isinstance(layer, LinearRule) and bits.dim() == tangents[0].dim():
        return layer.tangent_masked(frame, tangents[0], bits, activation.slope(above.params, tangents[0]))
    return activation.tangent(above, layer.tangent(frame, *tangents))


def cotangent_fused(layer: Layer, frame: Frame, g: Tensor, activation: Layer, below: Frame) -> Tensor:
    """activation's map after the transpose of the layer's, for an activation that feeds the layer."""
    assert isinstance(activation, ActivationRule)
    (bits,) = below.residual
    if isinstance(layer, LinearRule) and bits.dim() == g.dim():
        return layer.cotangent_masked(frame, g, bits, activation.slope(below.params, g))
    cotangent = layer.cotangent(frame, g)
    assert isinstance(cotangent, Tensor)
    return activation.cotangent(below, cotangent)
