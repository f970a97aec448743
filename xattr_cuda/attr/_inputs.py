"""What the attribution classes are called with, checked and in one form: tuples of tensors, and the target's output."""

from typing import Any

import torch
from torch import Tensor

from ..sweep.inputs import Inputs, as_tuple
from ..sweep.target import Target, has_one_output, one_hot

Baselines = int | float | Tensor | tuple[int | float | Tensor, ...] | None


def as_tensors(inputs: Inputs) -> tuple[Tensor, ...]:
    """`inputs` as a tuple of floating tensors [B, ...] of one batch size; TypeError or ValueError where it is not."""
    tensors = as_tuple(inputs)
    if any(len(x) != len(tensors[0]) for x in tensors):
        raise ValueError(f"`inputs` has shapes {[list(x.shape) for x in tensors]}; wanted [B, ...] with one B")
    return tensors


def as_baselines(baselines: Baselines, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A tensor [B, ...] or [1, ...] for each input; None is zero, a number serves every input."""
    if baselines is None:
        baselines = 0
    given: tuple[Any, ...]
    if isinstance(baselines, tuple):
        given = baselines
    else:
        given = (baselines,) * (len(inputs) if isinstance(baselines, int | float) else 1)
    _check_count("baselines", given, inputs)
    return tuple(_baseline(b, x) for b, x in zip(given, inputs, strict=True))


def _baseline(baseline: Any, x: Tensor) -> Tensor:
    if isinstance(baseline, int | float) and not isinstance(baseline, bool):
        return x.new_full((1, *x.shape[1:]), baseline)
    if not isinstance(baseline, Tensor):
        raise TypeError(f"`baselines` holds a {type(baseline).__name__}; wanted a number or a tensor [B, ...]")
    if baseline.dim() == 0 or baseline.shape[1:] != x.shape[1:] or len(baseline) not in (1, len(x)):
        raise ValueError(
            f"`baselines` has shape {list(baseline.shape)} for an input of shape {list(x.shape)}; "
            "wanted the input's shape, with a batch of 1 for one baseline to all"
        )
    _check_device("baselines", baseline, x)
    return baseline


def as_background(name: str, background: Inputs, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The references to draw from, a tensor [M, ...] for each input, M >= 1; `name` is the argument's, for errors."""
    given = background if isinstance(background, tuple) else (background,)
    _check_count(name, given, inputs)
    for references, x in zip(given, inputs, strict=True):
        if not isinstance(references, Tensor):
            raise TypeError(f"`{name}` holds a {type(references).__name__}; wanted a tensor [M, ...] of references")
        if references.dim() == 0 or references.shape[1:] != x.shape[1:] or not len(references):
            raise ValueError(
                f"`{name}` has shape {list(references.shape)} for an input of shape {list(x.shape)}; "
                f"wanted {['M', *x.shape[1:]]} with at least one reference".replace("'", "")
            )
        if len(references) != len(given[0]):
            raise ValueError(
                f"`{name}` holds {[len(t) for t in given]} references; wanted one M, since they are drawn together"
            )
        _check_device(name, references, x)
    return given


def _check_count(name: str, given: tuple[Any, ...], inputs: tuple[Tensor, ...]) -> None:
    if len(given) != len(inputs):
        raise ValueError(f"`{name}` is for {len(given)} inputs, `inputs` holds {len(inputs)}; wanted one for each")


def _check_device(name: str, given: Tensor, x: Tensor) -> None:
    if given.device != x.device:
        raise ValueError(f"`{name}` is on {given.device}, the input on {x.device}; move it")


def as_arguments(additional_forward_args: Any) -> tuple[Any, ...]:
    """What the model's forward takes after the inputs: None is nothing, anything else but a tuple is one argument."""
    if additional_forward_args is None:
        return ()
    return additional_forward_args if isinstance(additional_forward_args, tuple) else (additional_forward_args,)


def repeat_arguments(arguments: tuple[Any, ...], steps: int, batch: int) -> tuple[Any, ...]:
    """Every tensor [B, ...] as [S * B, ...], as the points of S steps are laid out; all else as it is."""
    return tuple(_repeat(a, steps, batch) if isinstance(a, Tensor) and a.dim() else a for a in arguments)


def _repeat(argument: Tensor, steps: int, batch: int) -> Tensor:
    if len(argument) != batch:
        raise ValueError(
            f"`additional_forward_args` holds a tensor of shape {list(argument.shape)} for a batch of {batch}; wanted "
            "one row a sample, [B, ...]: bind what all samples share to the model with functools.partial"
        )
    return argument.expand(steps, *argument.shape).flatten(0, 1)


def target_cotangent(output: Tensor, target: Target) -> Tensor:
    """Ones at the output that is attributed and zeros elsewhere, of the output's shape; Captum's forms of a target."""
    return torch.ones_like(output) if target is None and has_one_output(output) else one_hot(output, target)


def chosen_output(output: Tensor, cotangent: Tensor) -> Tensor:
    """The output that the cotangent of a target picks for each sample, [B]; another that is infinite does no harm."""
    return row_sums(torch.where(cotangent != 0, output, 0))


def row_sums(t: Tensor) -> Tensor:
    """The sum over the features of each sample: [B, ...] to [B]."""
    return t.unsqueeze(1).flatten(1).sum(1)
