"""Whether a program treats the samples of a batch apart.

A share of them can then be swept alone, and one chain serves a network with one output: row i of the output depends on
row i of the inputs. It is known of a program whose layers all say so (`Layer.apart`) and whose values all have the
batch in dimension 0 and there alone. That is tried on shapes, once, for batches of sizes that nothing else has.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from .. import ops
from .engine import forward_sweep
from .function import below_autograd
from .layer import Layer
from .program import BoundProgram
from .rules.pad import ExpandRule
from .rules.shape import ReshapeRule

_SIZES = (1_000_003, 1_000_033)  # of the batches that are tried: primes
_SHAPES_ALONE = (ReshapeRule, ExpandRule)  # their settings give a shape, and nothing else


class Like(NamedTuple):
    """What is to be known of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def empty(self, batch: int | None = None) -> torch.Tensor:
        """A tensor without values, of another batch size if one is given."""
        shape = self.shape if batch is None else (batch, *self.shape[1:])
        return torch.empty(shape, dtype=self.dtype, device="meta")


def treats_apart(bound: BoundProgram, inputs: Sequence[Like], found_pattern: bool = False) -> bool:
    """Whether each sample's output is known to depend on that sample alone; False where it is not known.

    inputs: of the network; their batch size does not matter, nor does the device of the parameters. found_pattern: ask
    this of the linear map of the batch's activation pattern, not of the network.
    """
    if not all(layer.maps_apart if found_pattern else layer.apart for layer in bound.layers):
        return False
    params = tuple([tuple([Like(tuple(p.shape), p.dtype) for p in tensors]) for tensors in bound.params])
    key = (tuple([Like((0, *like.shape[1:]), like.dtype) for like in inputs]), params)
    known = bound.program.apart
    if key not in known:
        known[key] = _tried(bound, inputs, params)
    return known[key]


def _tried(bound: BoundProgram, inputs: Sequence[Like], params: Sequence[Sequence[Like]]) -> bool:
    try:
        settings = [_settings_at(bound, inputs, params, batch) for batch in _SIZES]
    except Exception:  # whatever a layer says to such a batch, it is not known then
        return False
    return settings[0] is not None and settings[0] == settings[1]


def _settings_at(
    bound: BoundProgram, inputs: Sequence[Like], params: Sequence[Sequence[Like]], batch: int
) -> list[dict[str, Any]] | None:
    """The settings of the layers for a batch of this size; None where a value has it not in dimension 0 alone."""
    of = replace(
        bound, layers=list(bound.layers), params=[tuple([like.empty() for like in tensors]) for tensors in params]
    )
    with torch.no_grad(), below_autograd(), ops.use_backend("auto"):
        _, tape = forward_sweep(of, [like.empty(batch) for like in inputs], keep=False)
    for shape in tape.shapes:
        if not shape or shape[0] != batch or any(n % batch == 0 for n in shape[1:]):
            return None
    for reads in tape.graph.reads:
        if len({len(tape.shapes[v]) for v in reads}) > 1:
            return None  # broadcasting would count dimensions from the last
    return [_settings(layer) for layer in tape.layers]


def _settings(layer: Layer) -> dict[str, Any]:
    """What may make a layer's map depend on the batch's size."""
    return {} if isinstance(layer, _SHAPES_ALONE) else vars(layer)
