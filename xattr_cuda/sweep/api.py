"""The public functions of the sweeps: attribute, attribute_loss and their module form."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from . import double_backward, sharded
from .arguments import fill, flatten_like
from .inputs import Inputs, as_tuple, mirror, without_autocast
from .precision import checked_dtype
from .rows import Rows, RowsLike, rows_of
from .run import AnyRun, Run
from .share import with_options
from .step import step_of_loss, step_of_output
from .target import Target
from .wrappers import wrapped

Engine = Literal["sweep", "autograd"]


class Attribution(NamedTuple):
    """What `attribute` returns."""

    output: Any  # as the model returns it
    attribution: Any  # mirrors `inputs`: a tensor, or a tuple of them


class LossAttribution(NamedTuple):
    """What `attribute_loss` returns."""

    loss: Tensor
    output: Any  # as the model returns it
    attribution: Any  # mirrors `inputs`


def _sweeps(engine: str, hooked: bool) -> bool:
    if engine not in ("sweep", "autograd"):
        raise ValueError(f"`engine` is {engine!r}; wanted 'sweep' or 'autograd'")
    if engine == "autograd" and hooked:
        raise ValueError(
            "engine='autograd' takes a gradient within the forward, at which FSDP inside the model lets go of "
            "parameters that the second backward pass needs; shard nothing but xa.Sweep(model), or use engine='sweep'"
        )
    return engine == "sweep"


def _start(
    model: nn.Module, xs: Sequence[Tensor], constants: Sequence[Any], rows: Rows | None, dtype: torch.dtype | None
) -> AnyRun:
    if torch.compiler.is_compiling():
        from .compiled import CompiledRun  # here, since it takes Dynamo, which takes seconds to import

        run: Run | CompiledRun = CompiledRun.start(model, xs, constants)
    elif forward_ad._current_level >= 0:
        raise RuntimeError(
            "xattr_cuda: a step has no forward-mode derivative (torch.func.jvp, jacfwd, forward_ad.dual_level); "
            'use engine="autograd", or reverse mode'
        )
    else:
        run = Run.start(model, xs, constants)
    return with_options(run, rows, checked_dtype(dtype), [x.dtype for x in xs])


def _chosen(rows: RowsLike | None, xs: Sequence[Tensor], generator: torch.Generator | None) -> Rows | None:
    if rows is None and generator is not None:
        raise ValueError("`generator` draws a fraction of the rows; give it with rows=, or leave it out")
    return None if rows is None else rows_of(rows, xs, generator)


def _by_autograd(dtype: torch.dtype | None) -> None:
    if dtype is not None:
        raise ValueError(
            f"`attribution_dtype` is {dtype}, which wants engine='sweep': autograd has one dtype for a step"
        )


def _hooks() -> Any:
    """Who runs the hooks of FSDP inside a model, of which almost all models have none."""
    if torch.compiler.is_compiling():
        from . import compiled

        return compiled
    return sharded


def attribute(
    model: nn.Module,
    inputs: Inputs,
    target: Target = None,
    *,
    cotangent: Any = None,
    constants: Sequence[Any] = (),
    rows: RowsLike | None = None,
    generator: torch.Generator | None = None,
    attribution_dtype: torch.dtype | None = None,
    engine: Engine = "sweep",
) -> Attribution:
    """Output and X-Gradient attribution of an X-DNN, both differentiable once, without double backward.

    model: a network of bias-free, nonnegatively homogeneous layers. inputs: [B, ...], floating, or a tuple of them.
    target: the output to attribute: None where there is one; an int; a LongTensor [B]; a tuple indexing the
    dimensions after the batch; a list of B ints or tuples. cotangent: the output's shape, any weighting of the
    outputs instead of a target; may require gradients. For a model that returns several tensors: a structure like
    theirs, with None for what is not attributed. constants: further arguments of the model's forward, which the
    attribution holds constant. engine: "autograd" takes any network at its word and pays for double backward.
    rows: attribute these rows alone: numbers (LongTensor [R], no row twice), a mask [B], a slice, or a fraction over 0,
    up to 1, drawn with `generator` (see `sample_rows`). target, cotangent and constants stay those of the whole batch.
    Where samples are known to be treated apart (no BatchScale in training, no rule that does not say so) the other rows
    cost a plain step. attribution_dtype: of the attribution and its tangents, e.g. torch.bfloat16; the task keeps its
    own, and has a chain of its own.

    Returns (output, attribution): attribution = x * gradient of <u, output> mirrors `inputs`, and sums to <u, output>
    over the features of a sample (completeness). Design section 2; Hesse et al. 2021, "X-Gradient". With `rows` it is
    [R, ...] in their order, and the output has all rows. A prior that is a mean over rows (l1, total_variation) is then
    an unbiased estimate, as its gradient is, if every row is as likely to be drawn; gini, a ratio of means, is not.
    Raises NotHomogeneousError for a layer that has no closed form.
    """
    xs, hooks = as_tuple(inputs), _hooks()
    chosen, hooked = _chosen(rows, xs, generator), hooks.is_sharded(model)
    if not _sweeps(engine, hooked):
        _by_autograd(attribution_dtype)
        output, attributions = double_backward.attribute(model, xs, target, cotangent, constants, chosen)
        return Attribution(output, mirror(attributions, inputs))
    if hooked:
        xs, constants = hooks.gather(model, xs, constants)
    run = _start(model, xs, constants, chosen, attribution_dtype)
    given = None if cotangent is None else flatten_like(cotangent, run.structure)
    with without_autocast(xs[0].device, run.autocast):
        outputs, attributions = step_of_output(run, target, given)
    if hooked:
        outputs, attributions = hooks.release(model, (outputs, attributions))
    return Attribution(fill(run.structure, outputs), mirror(attributions, inputs))


def attribute_loss(
    model: nn.Module,
    inputs: Inputs,
    criterion: Callable[..., Tensor],
    *args: Any,
    rows: RowsLike | None = None,
    generator: torch.Generator | None = None,
    attribution_dtype: torch.dtype | None = None,
    engine: Engine = "sweep",
) -> LossAttribution:
    """Loss, output and the attribution of the loss, in one chain for any number of outputs.

    model, inputs, rows, generator, attribution_dtype, engine: as for `attribute`; the loss is that of all rows.
    criterion(output, *args): a scalar loss; it may have parameters.
    Returns (loss, output, attribution): attribution = x * gradient of <u, output> with u = d loss / d output held
    constant. A gradient sent into `output` is served by a second chain; without one that chain costs nothing.
    Design section 2, "One chain instead of two".
    """
    xs, hooks = as_tuple(inputs), _hooks()
    chosen, hooked = _chosen(rows, xs, generator), hooks.is_sharded(model)
    if not _sweeps(engine, hooked):
        _by_autograd(attribution_dtype)
        loss, output, attributions = double_backward.attribute_loss(model, xs, criterion, args, chosen)
        return LossAttribution(loss, output, mirror(attributions, inputs))
    if hooked:
        xs, _ = hooks.gather(model, xs, ())
    run = _start(model, xs, (), chosen, attribution_dtype)
    loss, outputs, attributions = step_of_loss(run, criterion, args)
    if hooked:
        _, outputs, attributions = hooks.release(model, (loss, outputs, attributions))
    return LossAttribution(loss, fill(run.structure, outputs), mirror(attributions, inputs))


class Sweep(nn.Module):
    """`attribute` or, with a criterion, `attribute_loss` as a module.

    The form to wrap in DistributedDataParallel, FSDP2 or torch.compile: its forward makes the whole step's graph, and
    its parameters are the model's. A model with wrappers inside, whose forward a sweep never calls, is refused; modules
    inside that FSDP2's fully_shard was applied to are gathered for the sweeps. model: an X-DNN, kept as `.model`;
    criterion: None, or as in `attribute_loss`.

    forward(inputs, target=None, *, cotangent=None, constants=()) returns `attribute`'s (output, attribution); with a
    criterion forward(inputs, *args) returns `attribute_loss`'s (loss, output, attribution). Both take the options rows,
    generator and attribution_dtype.
    """

    def __init__(self, model: nn.Module, criterion: Callable[..., Tensor] | None = None) -> None:
        super().__init__()
        for error in wrapped(model):
            raise error
        self.model = model
        self.criterion = criterion

    def forward(self, inputs: Inputs, *args: Any, **kwargs: Any) -> Attribution | LossAttribution:
        if self.criterion is None:
            return attribute(self.model, inputs, *args, **kwargs)
        return attribute_loss(self.model, inputs, self.criterion, *args, **kwargs)
