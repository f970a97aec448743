"""From a target to the cotangent of the output: which output of each sample is attributed."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

Target = int | Tensor | tuple[int, ...] | Sequence[int] | Sequence[tuple[int, ...]] | None


def has_one_output(output: Tensor) -> bool:
    """Whether every sample has exactly one output: the case of a single chain."""
    return output.shape[1:].numel() == 1


def _out_of_range(target: object, output: Tensor) -> IndexError:
    hint = "; with one output leave `target` out" if has_one_output(output) else ""
    return IndexError(f"`target` {target} is out of range for outputs of shape {list(output.shape)}{hint}")


def _one_index(index: tuple[Any, ...], output: Tensor) -> tuple[int, ...]:
    """An index into the outputs of a sample, checked."""
    if any(isinstance(i, bool) or not isinstance(i, int) for i in index):
        raise TypeError(f"`target` indexes with {[type(i).__name__ for i in index]}; wanted integers")
    if len(index) != output.dim() - 1:
        raise ValueError(
            f"`target` {index} has {len(index)} indices for outputs of shape {list(output.shape)}; "
            f"wanted {output.dim() - 1}, one for each dimension after the batch"
        )
    if any(not -size <= i < size for i, size in zip(index, output.shape[1:], strict=True)):
        raise _out_of_range(index, output)
    return index


def _is_integer(target: Tensor) -> bool:
    return not (target.is_floating_point() or target.is_complex() or target.dtype == torch.bool)


def _label_tensor(target: Tensor, output: Tensor) -> Tensor:
    """A LongTensor [B] of class indices, checked."""
    if not _is_integer(target):
        hint = "; with one output leave `target` out" if has_one_output(output) else ""
        raise TypeError(f"`target` has dtype {target.dtype}; wanted integers, the index of an output{hint}")
    if target.shape != output.shape[:1] or output.dim() != 2:
        raise ValueError(
            f"`target` has shape {list(target.shape)} for outputs of shape {list(output.shape)}; "
            "wanted one index a sample, [B], and outputs [B, C]"
        )
    labels = target.to(output.device, torch.int64)
    # Reading the values would stall a GPU, whose scatter checks them itself, and break a compiled graph.
    if (
        labels.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and len(labels)
        and not 0 <= int(labels.min()) <= int(labels.max()) < output.shape[1]
    ):
        raise _out_of_range(f"with values {int(labels.min())} to {int(labels.max())}", output)
    return labels


def one_hot(output: Tensor, target: Target) -> Tensor:
    """The cotangent that picks the target: ones and zeros, of the output's shape, dtype and device.

    target: an int; a tuple of ints that indexes the dimensions after the batch; a LongTensor [B]; a list of B ints or
    of B such tuples. Raises TypeError, ValueError or IndexError with the shapes wanted.
    """
    u = torch.zeros_like(output, memory_format=torch.contiguous_format)
    if isinstance(target, Tensor) and target.numel() == 1 and target.shape != output.shape[:1] and _is_integer(target):
        target = int(target)
    if isinstance(target, bool) or target is None:
        raise ValueError(
            f"the network has outputs of shape {list(output.shape)}; say which one to attribute with `target` "
            f"(got {target}), or weight them with `cotangent`"
        )
    if isinstance(target, int):
        target = (target,)
    if isinstance(target, tuple):
        everywhere: tuple[Any, ...] = (slice(None), *_one_index(target, output))
        u[everywhere] = 1
        return u
    if isinstance(target, Tensor):
        return u.scatter_(1, _label_tensor(target, output).unsqueeze(1), 1)
    if not isinstance(target, Sequence) or isinstance(target, str):
        raise TypeError(f"`target` is a {type(target).__name__}; wanted an int, a LongTensor [B], a tuple or a list")
    if len(target) != len(output):
        raise ValueError(f"`target` is a list of {len(target)} for a batch of {len(output)}; wanted one entry a sample")
    for row, index in zip(u, target, strict=True):
        row[_one_index(index if isinstance(index, tuple) else (index,), output)] = 1
    return u


class Seeds(NamedTuple):
    """Where the chain of the attribution starts. Lists have an entry for each output of the model."""

    starts: list[Tensor | None]  # constant: ones where one chain serves one output, else the weights of the outputs
    cotangents: list[Tensor | None]  # the caller's, which may require gradients
    one_output: bool  # one a sample, of samples that are known to be treated apart: one chain


def seeds_of(
    outputs: Sequence[Tensor], target: Target, given: Sequence[Any] | None, apart: Callable[[], bool]
) -> Seeds:
    """The seeds for a target, or for the cotangents that were given, one for each output or None.

    apart: whether row i of the output depends on row i of the inputs alone; asked where there is one output a sample.
    """
    if given is not None and target is not None:
        raise ValueError("give `target` or `cotangent`, not both: a cotangent already weights every output")
    if given is not None:
        cotangents = [_checked(y, u) for y, u in zip(outputs, given, strict=True)]
    elif len(outputs) == 1:
        return _of_target(outputs[0], target, apart)
    else:
        raise ValueError(
            f"the model returns {len(outputs)} tensors; weight them with `cotangent`, a structure like theirs"
        )
    if len(outputs) == 1 and has_one_output(outputs[0]) and cotangents[0] is not None and apart():
        return Seeds([torch.ones_like(outputs[0])], cotangents, True)
    return Seeds([None if u is None else u.detach() for u in cotangents], cotangents, False)


def _of_target(output: Tensor, target: Target, apart: Callable[[], bool]) -> Seeds:
    if not has_one_output(output):
        return Seeds([one_hot(output, target)], [None], False)
    if target is not None:
        one_hot(output, target)  # there is nothing to choose: None, or an index of the only output
    return Seeds([torch.ones_like(output)], [None], apart())


def _checked(output: Tensor, cotangent: Any) -> Tensor | None:
    """The caller's weighting of an output, checked, in the output's dtype."""
    if cotangent is None:
        return None
    if not isinstance(cotangent, Tensor) or cotangent.shape != output.shape or not cotangent.is_floating_point():
        given = (
            f"{cotangent.dtype} {list(cotangent.shape)}" if isinstance(cotangent, Tensor) else type(cotangent).__name__
        )
        raise ValueError(f"`cotangent` is {given}; wanted floating {list(output.shape)}, the shape of the output")
    if cotangent.device != output.device:
        raise ValueError(f"`cotangent` is on {cotangent.device}, the output on {output.device}; move it")
    return cotangent.to(output.dtype)
