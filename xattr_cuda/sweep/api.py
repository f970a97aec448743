"""The public functions of the sweeps: attribute, attribute_loss and their module form."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, ParamSpec, TypeVar, cast

import torch
from torch import Tensor, nn

from .. import ops
from .engine import Tape, cotangent_sweep, forward_sweep
from .function import INPUT, Step, attribution_of, below_autograd, sweep_function
from .program import BoundProgram, bind
from .target import Target, check_cotangent, check_single, has_one_output, one_hot

Inputs = Tensor | tuple[Tensor, ...]
P = ParamSpec("P")
R = TypeVar("R")


class Attribution(NamedTuple):
    """What `attribute` returns."""

    output: Tensor
    attribution: Any  # mirrors `inputs`: a tensor, or a tuple of them


class LossAttribution(NamedTuple):
    """What `attribute_loss` returns."""

    loss: Tensor
    output: Tensor
    attribution: Any  # mirrors `inputs`


def _outside_graph(function: Callable[P, R]) -> Callable[P, R]:
    """torch.compile runs the sweeps eagerly, between the graphs of what surrounds them, and traces no half of them."""
    reason = "xattr_cuda's sweeps run outside the compiled graph"
    return cast(Callable[P, R], torch.compiler.disable(function, reason=reason))


def _single_input(inputs: Inputs) -> Tensor:
    if isinstance(inputs, tuple):
        if len(inputs) != 1:
            raise ValueError(f"`inputs` is a tuple of {len(inputs)}; a chain of layers takes exactly one tensor")
        (inputs,) = inputs
    if not isinstance(inputs, Tensor):
        raise TypeError(f"`inputs` is a {type(inputs).__name__}; wanted a tensor [B, ...]")
    if not inputs.is_floating_point():
        raise TypeError(f"`inputs` has dtype {inputs.dtype}; wanted a floating one, since it is differentiated")
    if inputs.dim() == 0:
        raise ValueError("`inputs` is a scalar; wanted a tensor [B, ...] with a batch dimension")
    ops.check_device(inputs.device)
    return inputs


def _prepare(model: nn.Module, inputs: Inputs) -> tuple[BoundProgram, Tensor, AbstractContextManager[Any]]:
    """The bound program and the input, in autocast's dtype where it is on, and the context that keeps it off inside."""
    x, program = _single_input(inputs), bind(model)
    kind = x.device.type
    if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
        return program, x, nullcontext()
    params = [tuple(_autocast(p) for p in tensors) for tensors in program.params]
    return BoundProgram(program.layers, params, program.schedule), _autocast(x), torch.autocast(kind, enabled=False)


def _autocast(t: Tensor) -> Tensor:
    """t as autocast hands it to a matrix product: float64 stays as it is."""
    return t if t.dtype == torch.float64 else t.to(torch.get_autocast_dtype(t.device.type))


def _differentiable(program: BoundProgram, *tensors: Tensor | None) -> bool:
    if not torch.is_grad_enabled():
        return False
    return bool(program.schedule.trainable) or any(t is not None and t.requires_grad for t in tensors)


def _forward(program: BoundProgram, x: Tensor, *, keep_inputs: bool) -> tuple[Tensor, Tape]:
    keep = program.schedule.kept_inputs if keep_inputs else ()
    with torch.no_grad(), below_autograd():
        output, tape = forward_sweep(program, x.detach(), keep)
    # A program without a weight may hand its input through: the output must not alias it.
    return output.clone() if _aliases(output, x) else output, tape


def _aliases(a: Tensor, b: Tensor) -> bool:
    return bool(torch._C._is_alias_of(a, b))  # type: ignore[attr-defined]


def _attribution(tape: Tape, seed: Tensor, x: Tensor, scale: Tensor | None) -> Tensor:
    """The attribution alone, with nothing to differentiate: every mask is freed as soon as it is used."""
    with torch.no_grad(), below_autograd():
        ((_, g0),) = cotangent_sweep(tape, seed, {INPUT}, release=True)
        return attribution_of(x, g0, scale)


def _mirror(attribution: Tensor, inputs: Inputs) -> Any:
    return (attribution,) if isinstance(inputs, tuple) else attribution


@_outside_graph
def attribute(
    model: nn.Module, inputs: Inputs, target: Target = None, *, cotangent: Tensor | None = None
) -> Attribution:
    """Output and X-Gradient attribution of an X-DNN, both differentiable once, without double backward.

    model: a chain of bias-free layers. inputs: [B, ...], floating, or a tuple of one such tensor.
    target: the output to attribute: None where there is one; an int; a LongTensor [B]; a tuple indexing the
    dimensions after the batch; a list of B ints or tuples. cotangent: the output's shape, any weighting of the
    outputs instead of a target; may require gradients.

    Returns (output, attribution): attribution = x * gradient of <u, output> mirrors `inputs`, and sums to <u, output>
    over the features of a sample (completeness). Design section 2; Hesse et al. 2021, "X-Gradient".
    Raises NotHomogeneousError for a layer that has no closed form.
    """
    program, x, autocast_off = _prepare(model, inputs)
    with autocast_off:
        needs_grad = _differentiable(program, x, cotangent)
        output, tape = _forward(program, x, keep_inputs=needs_grad)
        one_output = has_one_output(output)
        if cotangent is not None:
            cotangent = check_cotangent(output, cotangent, target)
        elif one_output:
            check_single(output, target)
        else:
            cotangent = one_hot(output, target)
        seed = torch.ones_like(output) if one_output else cotangent
        assert seed is not None
        if not needs_grad:
            attribution = _attribution(tape, seed.detach(), x, cotangent if one_output else None)
            return Attribution(output, _mirror(attribution, inputs))
        if one_output:
            tape.inputs.clear()  # one chain needs none of them
        step = Step(tape, output, seed.detach(), one_output)
        output, attribution, _ = sweep_function(step, x, cotangent, None, *_flat(program))
    return Attribution(output, _mirror(attribution, inputs))


@_outside_graph
def attribute_loss(model: nn.Module, inputs: Inputs, criterion: Callable[..., Tensor], *args: Any) -> LossAttribution:
    """Loss, output and the attribution of the loss, in one chain for any number of outputs.

    model, inputs: as for `attribute`. criterion(output, *args): a scalar loss; it may have parameters of its own.
    Returns (loss, output, attribution): attribution = x * gradient of <u, output> with u = d loss / d output held
    constant. A gradient sent into `output` is served by a second chain; without one that chain costs nothing.
    Design section 2, "One chain instead of two".
    """
    program, x, autocast_off = _prepare(model, inputs)
    with autocast_off:
        output, tape = _forward(program, x, keep_inputs=False)
    loss, seed = _loss_and_cotangent(criterion, output, args)
    if not _differentiable(program, x):
        return LossAttribution(loss, output, _mirror(_attribution(tape, seed, x, None), inputs))
    step = Step(tape, output, seed, one_output=False)
    with autocast_off:
        output, attribution, through = sweep_function(step, x, None, loss, *_flat(program))
    assert through is not None
    return LossAttribution(through, output, _mirror(attribution, inputs))


def _flat(program: BoundProgram) -> list[Tensor]:
    return [p for tensors in program.params for p in tensors]


def _loss_and_cotangent(
    criterion: Callable[..., Tensor], output: Tensor, args: tuple[Any, ...]
) -> tuple[Tensor, Tensor]:
    """(loss, d loss / d output). The loss keeps its graph only where it depends on more than the output."""
    with torch.inference_mode(False), torch.enable_grad():
        args = tuple(a.clone() if isinstance(a, Tensor) and a.is_inference() else a for a in args)
        y = (output.clone() if output.is_inference() else output.detach()).requires_grad_()
        loss = criterion(y, *args)
        if not isinstance(loss, Tensor) or loss.dim() != 0:
            given = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"`criterion` returned {given}; wanted a scalar tensor (reduction='mean' or 'sum')")
        more = _depends_on_more(loss, y)
        (seed,) = torch.autograd.grad(loss, y, retain_graph=more, allow_unused=True) if loss.requires_grad else (None,)
    if seed is None:
        raise ValueError(
            "`criterion` does not depend on the output that it was given, so there is nothing to attribute"
        )
    return loss if more and torch.is_grad_enabled() else loss.detach(), seed


def _depends_on_more(loss: Tensor, y: Tensor) -> bool:
    """Whether the graph of the loss ends in a leaf other than y: a parameter of the criterion, say."""
    seen, stack = set(), [loss.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and leaf is not y:
            return True
        stack += [parent for parent, _ in node.next_functions]
    return False


class Sweep(nn.Module):
    """`attribute` or, with a criterion, `attribute_loss` as a module.

    The form to wrap in DistributedDataParallel: its forward makes the whole step's graph, and its parameters are the
    model's. model: an X-DNN, kept as `.model`; criterion: None, or as in `attribute_loss`.

    forward(inputs, target=None, *, cotangent=None) returns `attribute`'s (output, attribution); with a criterion
    forward(inputs, *args) returns `attribute_loss`'s (loss, output, attribution).
    """

    def __init__(self, model: nn.Module, criterion: Callable[..., Tensor] | None = None) -> None:
        super().__init__()
        self.model = model
        self.criterion = criterion

    def forward(self, inputs: Inputs, *args: Any, **kwargs: Any) -> Attribution | LossAttribution:
        if self.criterion is None:
            return attribute(self.model, inputs, *args, **kwargs)
        return attribute_loss(self.model, inputs, self.criterion, *args, **kwargs)
