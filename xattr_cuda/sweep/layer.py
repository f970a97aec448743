"""What a layer type must know to take part in the sweeps of design section 2: the interface of a rule."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from .errors import NotHomogeneousError, UnsupportedLayerError
from .schedule import Traits

Pair = tuple[Tensor, Tensor]
"""One chain at one layer: the cotangent at its output and the tangent at its input."""


class Layer(ABC):
    """A layer during one step: its settings, read from the module when the step begins.

    For the activation pattern of the batch a layer is linear. `forward` finds the pattern and returns it as the
    residual; `tangent` and `cotangent` apply the linear map and its transpose. Parameters are handed in, not kept,
    so that autograd alone decides how long they and everything else live.
    """

    product: ClassVar[bool] = False
    """Multiplies by a weight and has `masked` forms, which apply a neighbouring activation on the way out."""
    maskable: ClassVar[bool] = False
    """Is an activation that a product can apply while it has one slope at most."""
    recomputes: ClassVar[bool] = False
    """Has cheap maps (no product): tensors beside such a layer are recomputed, not saved."""

    def __init__(self, name: str, module: Any) -> None:
        self.name = name
        self.kind = type(module).__name__

    def parameters(self, module: Any) -> tuple[Tensor, ...]:
        """The parameters that the layer's maps depend on."""
        return ()

    @abstractmethod
    def forward(self, h: Tensor, params: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """h, the layer's input, to (output, residual)."""

    @abstractmethod
    def tangent(self, v: Tensor, params: Sequence[Tensor], residual: Tensor | None) -> Tensor:
        """The layer's linear map: a tangent at the input to the tangent at the output."""

    @abstractmethod
    def cotangent(self, g: Tensor, params: Sequence[Tensor], residual: Tensor | None, shape: torch.Size) -> Tensor:
        """Its transpose: a cotangent at the output to the cotangent at the input, which has `shape`."""

    def parameter_gradients(
        self, pairs: Sequence[Pair], params: Sequence[Tensor], residual: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Gradients of the parameters: the sum over one or two chains."""
        return ()

    def traits(self, params: Sequence[Tensor]) -> Traits:
        """What the schedule needs to know."""
        trainable, one_slope = False, True
        for p in params:
            trainable = trainable or p.requires_grad
            one_slope = one_slope and p.numel() == 1
        return Traits(self.product, self.maskable and one_slope, self.recomputes, trainable)

    def not_homogeneous(self, reason: str, remedy: str) -> NotHomogeneousError:
        return NotHomogeneousError(self.name, self.kind, reason, remedy)

    def unsupported(self, reason: str, remedy: str) -> UnsupportedLayerError:
        return UnsupportedLayerError(self.name, self.kind, reason, remedy)
