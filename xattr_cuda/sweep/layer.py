"""What a layer must know to take part in the sweeps of design section 2: the interface of a rule."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from .errors import NotHomogeneousError, UnsupportedLayerError

Pair = tuple[Tensor, Tensor]
"""One chain at one layer: the cotangent at its output and the tangent at its input."""

Residual = tuple[Tensor, ...]
"""The activation pattern that a forward map found: packed masks, indices, statistics; often nothing."""


def to_dtype(t: Tensor, dtype: torch.dtype) -> Tensor:
    """t in a floating dtype; masks, indices and other integers as they are."""
    return t.to(dtype) if t.is_floating_point() else t


class Frame(NamedTuple):
    """What the forward sweep left behind at one layer, for the other sweeps."""

    params: tuple[Tensor, ...]
    shapes: tuple[torch.Size, ...]  # of its inputs
    out_shape: torch.Size
    residual: Residual


class Layer(ABC):
    """A layer: its settings, and its maps. It holds no tensor of the step, so that autograd alone decides how long
    tensors live; parameters and all that the forward map found are handed in.

    For the activation pattern of the batch a layer is linear in its inputs. `forward` finds the pattern and returns it
    as the residual; `tangent` and `cotangent` apply the linear map and its transpose. No map may write to its
    arguments. A layer with parameters has one input.
    """

    fuses: ClassVar[bool] = False
    """Has forms that apply a neighbouring activation on the way out; see fusion.py."""
    maskable: ClassVar[bool] = False
    """Is an activation that such a form can apply while it has one slope at most."""
    recomputes: ClassVar[bool] = False
    """Has cheap maps (no product): tensors beside such a layer are recomputed, not saved."""
    aliases: ClassVar[bool] = False
    """In PyTorch its output may share memory with its input."""
    shrinks: ClassVar[bool] = False
    """Returns fewer elements than it takes."""
    joins: ClassVar[bool] = False
    """Lays its inputs side by side, so that its output is as large as they are together."""
    rectifies: ClassVar[bool] = False
    """Commutes with ReLU."""
    keeps: ClassVar[int | None] = None
    """How many of its parameters, from the first, the backward pass needs; None: all."""
    apart: bool = False
    """Is known to treat each sample by itself, wherever dimension 0 of what it takes and returns is the batch."""

    @property
    def maps_apart(self) -> bool:
        """The linear map of a pattern treats each sample by itself, though the batch may have made the pattern."""
        return self.apart

    name: str = ""  # the qualified name in the model; it and the kind are set when the layer joins a program
    kind: str = ""  # of the module's class or of the function

    @abstractmethod
    def forward(self, params: Sequence[Tensor], *inputs: Tensor) -> tuple[Tensor, Residual]:
        """The layer's inputs to (output, residual)."""

    @abstractmethod
    def tangent(self, frame: Frame, *tangents: Tensor) -> Tensor:
        """The layer's linear map: tangents at its inputs to the tangent at its output."""

    @abstractmethod
    def cotangent(self, frame: Frame, g: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Its transpose: the cotangent at the output to that at the input, or a tuple of them for several inputs."""

    def parameter_gradients(self, frame: Frame, pairs: Sequence[Pair]) -> tuple[Tensor | None, ...]:
        """Gradients of the parameters, in new tensors: the sum over the chains of d<g, layer(v)> / d parameter."""
        return ()

    def joins_chains(self, frame: Frame) -> bool:
        """Whether the gradients of two chains cost less in one call, for which the first chain's pair has to wait."""
        return False

    def in_dtype(self, frame: Frame, dtype: torch.dtype) -> Frame:
        """The frame for tangents and cotangents of another dtype, its activation pattern as it is."""
        params, residual = (tuple([to_dtype(t, dtype) for t in ts]) for ts in (frame.params, frame.residual))
        return frame._replace(params=params, residual=residual)

    @property
    def where(self) -> str:
        """The layer as messages name it."""
        return f"layer {self.name!r} ({self.kind})"


def not_homogeneous(reason: str, remedy: str) -> NotHomogeneousError:
    """What a rule raises for settings without a closed form; whoever called the rule adds the layer's name."""
    return NotHomogeneousError("", "", reason, remedy)


def unsupported(reason: str, remedy: str) -> UnsupportedLayerError:
    """What a rule raises for settings that it cannot carry; whoever called the rule adds the layer's name."""
    return UnsupportedLayerError("", "", reason, remedy)


def biased() -> NotHomogeneousError:
    """What a rule raises for a layer with a bias."""
    return not_homogeneous(
        "it has a bias, and a network with biases is not homogeneous", "Build it with bias=False, or use xa.convert"
    )
