"""From a torch network to an X-DNN: biases stripped, BatchNorm folded or replaced, and a report of every change."""

import copy
import inspect
from collections.abc import Iterable
from typing import Literal, NamedTuple

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import is_parametrized

from ..check.measure import floating_inputs
from ..sweep import LayerError, UnsupportedLayerError, offenders
from . import batch_norm as norms
from .activations import replaceable, to_relu
from .edit import Change, Edit, names_of
from .report import ConversionError, ConversionReport, OutputChange, output_change
from .scale import ChannelScale

__all__ = ["Change", "ChannelScale", "ConversionError", "ConversionReport", "Converted", "OutputChange", "convert"]

_NORMS = {"fold": norms.fold, "scale": norms.rescale, "remove": norms.remove}
_FINE_TUNE = (
    "A trained network computes something else without its biases: fine-tune it, or train it from scratch, before its "
    "output or its attribution is used (Hesse et al. 2021)."
)
_BATCH_SCALE = (
    "In training BatchScale divides by statistics of the batch: the attribution is complete in both modes, but "
    "F(c x) = c F(x) holds in evaluation only."
)


class Converted(NamedTuple):
    """What `convert` returns."""

    model: nn.Module
    report: ConversionReport


def convert(
    model: nn.Module,
    *,
    example_input: Tensor | tuple[Tensor, ...] | None = None,
    batch_norm: Literal["fold", "scale", "remove"] = "fold",
    activations: Literal["relu"] | None = None,
    remove: Iterable[str | type[nn.Module]] = (),
) -> Converted:
    """A copy of a torch network made an X-DNN (design section 2), and a report of what was changed.

    The biases of Linear, Conv and ConvTranspose layers are dropped. Parametrisations (weight norm), shared modules and
    tied weights stay as they are, and so do the modes of all layers.

    example_input: what the model takes; with it the report says how far the output moved.
    batch_norm: "fold" keeps the scale that a BatchNorm has in evaluation, in the weight before it or as a ChannelScale,
    and drops its shift; "scale" puts an xa.nn.BatchScale in its place, which normalises in training too; "remove"
    drops it. activations: "relu" replaces GELU, SiLU, ELU, ReLU6, Tanh and their like by ReLU, and AlphaDropout by
    Dropout. remove: qualified names or types of further layers to drop, such as a final Softmax.

    Returns the named tuple (model, report). The argument is never edited. Raises ConversionError with every layer that
    stands in the way, each with reason and remedy, unless the sweeps can run through the result.
    """
    _check_options(model, batch_norm, activations)
    inputs = () if example_input is None else floating_inputs(example_input)
    edit = Edit(copy.deepcopy(model))
    lazy = _uninitialised(edit.model)
    if lazy:
        raise ConversionError(type(model).__name__, lazy)
    _remove(edit, remove)
    if activations == "relu":
        to_relu(edit)
    _NORMS[batch_norm](edit)
    _strip_biases(edit)
    _refuse_offenders(edit, type(model).__name__, len(inputs) if inputs else _required_inputs(model))
    change = None
    if inputs:
        change = output_change(copy.deepcopy(model).eval(), copy.deepcopy(edit.model).eval(), inputs)
    return Converted(edit.model, _report(type(model).__name__, edit, change))


def _check_options(model: object, batch_norm: str, activations: str | None) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` is a {type(model).__name__}; wanted a torch.nn.Module")
    if batch_norm not in _NORMS:
        raise ValueError(f"`batch_norm` is {batch_norm!r}; wanted one of {', '.join(map(repr, _NORMS))}")
    if activations not in (None, "relu"):
        raise ValueError(f"`activations` is {activations!r}; wanted None, to keep them, or 'relu'")


def _uninitialised(model: nn.Module) -> list[LayerError]:
    return [
        UnsupportedLayerError(
            name, type(m).__name__, "its parameters have no shape yet", "Run one batch through the model first"
        )
        for m, name in names_of(model).items()
        if isinstance(m, LazyModuleMixin) and m.has_uninitialized_params()
    ]


def _remove(edit: Edit, remove: Iterable[str | type[nn.Module]]) -> None:
    """Replace the named layers, and the layers of the given types, by the identity."""
    wanted = [remove] if isinstance(remove, (str, type)) else list(remove)
    by_name = dict(edit.model.named_modules(remove_duplicate=False))
    if unknown := [w for w in wanted if isinstance(w, str) and w not in by_name]:
        raise ValueError(f"`remove` names {unknown}, which the model does not have; see its named_modules()")
    kinds = tuple(w for w in wanted if isinstance(w, type))
    chosen = [by_name[w] for w in wanted if isinstance(w, str)]
    chosen += [m for m in edit.model.modules() if isinstance(m, kinds)]
    for module in dict.fromkeys(chosen):
        if module in names_of(edit.model):  # it may have gone with a layer that held it
            edit.replace(module, nn.Identity(), "Identity")


def _strip_biases(edit: Edit) -> None:
    for module, name in names_of(edit.model).items():
        if not isinstance(module, (nn.Linear, _ConvNd)) or module.bias is None:
            continue
        kind = type(module).__name__
        if is_parametrized(module, "bias"):
            # Undoing it on the copy would undo it on the original, which shares the class that carries it.
            remedy = 'Call torch.nn.utils.parametrize.remove_parametrizations(layer, "bias") first'
            edit.refused.append(UnsupportedLayerError(name, kind, "its bias is parametrised", remedy))
            continue
        module.bias = None
        edit.changes.append(Change(name, f"{kind} with bias", "without"))


def _required_inputs(model: nn.Module) -> int:
    """How many tensors the forward cannot do without."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(model.forward).parameters.values()
    return max(1, sum(p.kind in kinds and p.default is inspect.Parameter.empty for p in parameters))


def _refuse_offenders(edit: Edit, model: str, inputs: int) -> None:
    """Raise ConversionError where a layer could not be converted, or the sweeps would refuse one."""
    known = {error.layer for error in edit.refused}
    modules = dict(edit.model.named_modules(remove_duplicate=False))
    in_the_way = list(edit.refused)
    for error in offenders(copy.deepcopy(edit.model), inputs):
        if replaceable(modules.get(error.layer)):
            error = type(error)(error.layer, error.kind, error.reason, 'Give activations="relu" to have it replaced')
        if error.layer not in known:
            in_the_way.append(error)
    if in_the_way:
        raise ConversionError(model, in_the_way)


def _report(model: str, edit: Edit, change: OutputChange | None) -> ConversionReport:
    notes = [_FINE_TUNE] if edit.changes else []
    if any(c.after.startswith("BatchScale") for c in edit.changes):
        notes.append(_BATCH_SCALE)
    return ConversionReport(model, tuple(edit.changes), change, tuple(notes))
