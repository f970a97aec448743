"""An X-DNN that returns its attribution beside its output, in plain PyTorch, for torch.export and other exporters."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..sweep.arguments import fill
from ..sweep.inputs import Inputs, as_tuple, mirror
from ..sweep.program import BoundProgram, bind
from ..sweep.target import Target, has_one_output, seeds_of
from .plain_layers import Transpose, plain

PREDICTED = "predicted"


class WithAttribution(nn.Module):
    """A network and the attribution of one of its outputs, in plain PyTorch: what `with_attribution` returns."""

    def __init__(self, model: nn.Module, target: Target | str, inputs: int) -> None:
        super().__init__()
        self.model = model
        self.target = target
        _one_tensor(bind(model, inputs), model)

    def forward(self, inputs: Inputs, target: Tensor | None = None) -> tuple[Any, Any]:
        """(output, attribution) of inputs [B, ...]; target: a LongTensor [B], where none was fixed before."""
        xs = as_tuple(inputs)
        bound = bind(self.model, len(xs))
        values, transposes = forward_plain(bound, xs)
        (place,) = bound.program.outputs
        output = values[place]
        seeds = seeds_of([output], self._chosen(output, target), None, lambda: False)
        (seed,) = seeds.starts
        found = _transposed(bound, transposes, place, seed, len(xs))
        attributions = [x * g for x, g in zip(xs, found, strict=True)]
        return fill(bound.program.structure, [output]), mirror(attributions, inputs)

    def _chosen(self, output: Tensor, given: Tensor | None) -> Target:
        if given is not None and self.target is not None:
            raise ValueError(f"the target {self.target!r} was fixed by with_attribution; leave `target` out here")
        if self.target != PREDICTED:
            return self.target if given is None else given  # type: ignore[return-value]
        if output.dim() != 2:
            raise ValueError(f"the outputs are {list(output.shape)}; target='predicted' wants [B, C]")
        return None if has_one_output(output) else output.argmax(1)


def with_attribution(model: nn.Module, target: Target | str = None, *, inputs: int = 1) -> WithAttribution:
    """A module that returns (output, attribution) of an X-DNN and is made of plain PyTorch operators.

    The results are those of `xattr_cuda.attribute`; the parameters are the model's own, as `.model`. It is for
    torch.export, torch.onnx and other engines that do not know the package's operators, and slower than
    `xattr_cuda.attribute` in PyTorch.

    model: an X-DNN with one tensor as output, kept as it is; put it into evaluation mode before exporting. target: None
    where there is one output, or to be given with every batch as the second argument, a LongTensor [B]; otherwise the
    output to attribute, as for `attribute`, or "predicted", the largest output of each sample. inputs: how many
    tensors the model takes, and are attributed: `forward(inputs, target=None)` takes one, or a tuple of them.

    The batch may have any size. Sizes of images are fixed when a graph is exported.
    Raises NotHomogeneousError for a layer that has no closed form. Design section 2.
    """
    if isinstance(target, str) and target != PREDICTED:
        raise ValueError(f"`target` is {target!r}; wanted None, an index or 'predicted'")
    return WithAttribution(model, target, inputs)


def _one_tensor(bound: BoundProgram, model: nn.Module) -> None:
    if len(bound.program.outputs) != 1:
        raise ValueError(
            f"{type(model).__name__} returns {len(bound.program.outputs)} tensors; wanted one, whose attribution is "
            "the second output"
        )


def forward_plain(bound: BoundProgram, xs: Sequence[Tensor]) -> tuple[list[Tensor], list[Transpose]]:
    """The forward sweep in plain operators: all values of the program, and the transpose of every layer."""
    values, transposes = list(xs), []
    for i, instruction in enumerate(bound.program.instructions):
        bound.settle(i, [v.shape for v in values])
        out, transpose = plain(bound.layers[i], bound.params[i], *[values[v] for v in instruction.inputs])
        values.append(out)
        transposes.append(transpose)
    return values, transposes


def _transposed(
    bound: BoundProgram, transposes: Sequence[Transpose], place: int, seed: Any, inputs: int
) -> list[Tensor | float]:
    """The cotangents of the network's inputs, for the cotangent `seed` of the value at `place`; 0 for one unused."""
    sums = {place: seed}
    for i in reversed(range(len(transposes))):
        g = sums.pop(inputs + i, None)
        if g is None:
            continue
        found = transposes[i](g)
        for v, c in zip(
            bound.program.instructions[i].inputs, (found,) if isinstance(found, Tensor) else found, strict=True
        ):
            sums[v] = sums[v] + c if v in sums else c
    return [sums.get(k, 0.0) for k in range(inputs)]
