"""How far a network is from homogeneous and its attribution from complete, measured by plain PyTorch."""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..sweep import LayerError, UnsupportedLayerError

SCALES = (0.1, 0.5, 2.0, 10.0)
"""The factors c at which F(c x) is compared with c F(x)."""


class NotCopiedError(RuntimeError):
    """The model has no deep copy, so it cannot be measured without touching it."""


@dataclass(frozen=True)
class Measurement:
    """Relative residuals of the two properties of an X-DNN (design section 2) on one input."""

    training: bool  # the mode that the model was measured in
    dtype: torch.dtype
    homogeneity: dict[float, float]  # by c: |F(c x) - c F(x)| relative to the larger of the two
    completeness: float  # |sum of attribution - <u, y>| relative to the sum of |u y|
    in_evaluation: dict[float, float] | None  # homogeneity in evaluation mode, where it fails in training
    zero_output: bool  # the residuals then say nothing

    @property
    def tolerance(self) -> float:
        """Up to where a residual is rounding: 1e-8 in float64; 1e-3, or 16 units of precision, at other dtypes."""
        return 1e-8 if self.dtype == torch.float64 else max(1e-3, 16 * torch.finfo(self.dtype).eps)

    @property
    def complete(self) -> bool:
        """Whether the attribution sums to <u, y>."""
        return self.completeness <= self.tolerance

    @property
    def homogeneous(self) -> bool:
        """Whether F(c x) = c F(x) in the mode measured."""
        return self.all_kept(self.homogeneity)

    @property
    def homogeneous_in_evaluation(self) -> bool:
        """Whether F(c x) = c F(x) at least in evaluation mode."""
        return self.homogeneous if self.in_evaluation is None else self.all_kept(self.in_evaluation)

    def all_kept(self, residuals: dict[float, float]) -> bool:
        """Whether all residuals are within the tolerance."""
        return all(r <= self.tolerance for r in residuals.values())

    def as_dict(self) -> dict[str, Any]:
        """The measurement in plain types; a residual that is not finite is None."""
        evaluation = self.in_evaluation
        return {
            "mode": "training" if self.training else "evaluation",
            "dtype": str(self.dtype).removeprefix("torch."),
            "tolerance": self.tolerance,
            "homogeneity": _plain(self.homogeneity),
            "homogeneity_in_evaluation": None if evaluation is None else _plain(evaluation),
            "completeness": self.completeness if math.isfinite(self.completeness) else None,
            "complete": self.complete,
            "homogeneous": self.homogeneous,
        }


def _plain(residuals: dict[float, float]) -> dict[str, float | None]:
    return {str(c): r if math.isfinite(r) else None for c, r in residuals.items()}


def floating_inputs(example_input: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """An example input as a tuple, checked to hold nothing but floating tensors."""
    inputs = example_input if isinstance(example_input, tuple) else (example_input,)
    if not inputs:
        raise ValueError("`example_input` is an empty tuple; wanted what the model's forward takes")
    for x in inputs:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            given = f"a tensor of {x.dtype}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
            raise TypeError(
                f"`example_input` is or holds {given}; wanted a floating tensor [B, ...] or a tuple of them"
            )
    return inputs


def measure(model: nn.Module, inputs: Sequence[Tensor]) -> Measurement:
    """Measure a copy of the model in its current mode, in float64.

    Where that cannot run (an operator without float64), it is measured in the model's own dtype. Raises NotCopiedError,
    UnsupportedLayerError where the forward returns anything but floating tensors, and what the forward raises.
    """
    with torch.inference_mode(False):
        try:
            return _measure(copied(model).double(), [x.double() for x in inputs])
        except (NotCopiedError, LayerError):
            raise
        except (RuntimeError, TypeError):
            return _measure(copied(model), inputs)


def copied(model: nn.Module) -> nn.Module:
    """A deep copy of the model. Raises NotCopiedError."""
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise NotCopiedError(str(error)) from error


def _measure(model: nn.Module, inputs: Sequence[Tensor]) -> Measurement:
    inputs = [x.detach().clone() for x in inputs]
    training = any(m.training for m in model.modules())
    output, completeness = _completeness(model, inputs)
    homogeneity = _homogeneity(model, inputs)
    found = Measurement(training, output.dtype, homogeneity, completeness, None, not bool(output.any()))
    if found.homogeneous or not training:
        return found
    return replace(found, in_evaluation=_homogeneity(model.eval(), inputs))


@contextmanager
def _same_draws(devices: set[torch.device]) -> Iterator[None]:
    """Every pass draws the same random numbers, and the caller's generators stay where they are."""
    on_gpu = [d for d in devices if d.type == "cuda"]
    with torch.random.fork_rng(on_gpu):
        # Seeding all devices by torch.manual_seed would reach those that fork_rng does not restore.
        torch.default_generator.manual_seed(0)
        for d in on_gpu:
            torch.cuda.default_generators[d.index].manual_seed(0)
        yield


def _forward(model: nn.Module, inputs: Sequence[Tensor]) -> Tensor:
    """All outputs in one vector."""
    with _same_draws({t.device for t in (*inputs, *model.parameters(), *model.buffers())}):
        outputs = tensors_of(model(*inputs))
    for y in outputs:
        if not isinstance(y, Tensor) or not y.is_floating_point():
            given = f"a tensor of {y.dtype}" if isinstance(y, Tensor) else f"a {type(y).__name__}"
            reason, remedy = f"its forward returns {given}", "Return floating tensors, the outputs alone"
            raise UnsupportedLayerError("", type(model).__name__, reason, remedy)
    return torch.cat([y.flatten() for y in outputs])


def tensors_of(output: Any) -> list[Any]:
    """What a forward returned, taken out of tuples, lists and dictionaries."""
    if isinstance(output, dict):
        output = tuple(output.values())
    return [t for part in output for t in tensors_of(part)] if isinstance(output, (tuple, list)) else [output]


def _homogeneity(model: nn.Module, inputs: Sequence[Tensor]) -> dict[float, float]:
    """By c: the relative residual of F(c x) = c F(x)."""
    with torch.no_grad():
        output = _forward(model, [x.clone() for x in inputs])
        return {c: _distance(_forward(model, [c * x for x in inputs]), c * output) for c in SCALES}


def _completeness(model: nn.Module, inputs: Sequence[Tensor]) -> tuple[Tensor, float]:
    """(outputs, relative residual of sum of attribution = <u, y>), the attribution by autograd, for a random u."""
    with torch.enable_grad():
        leaves = [x.clone().requires_grad_() for x in inputs]
        output = _forward(model, [x.clone() for x in leaves])  # clones, since a layer may write to its input
        u = torch.randn(output.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(output)
        explained = (u * output).sum()
        if explained.requires_grad:
            gradients = torch.autograd.grad(explained, leaves, materialize_grads=True)
        else:
            gradients = tuple(torch.zeros_like(x) for x in leaves)
    total = sum((x.detach().double() * g.double()).sum() for x, g in zip(leaves, gradients, strict=True))
    paired = (u * output.detach()).double()
    size, gap = float(paired.abs().sum()), abs(float(total - paired.sum()))
    return output.detach(), gap / size if size else gap


def _distance(a: Tensor, b: Tensor) -> float:
    """|a - b| relative to the larger norm; zero where both are zero."""
    size = float(torch.maximum(a.norm(), b.norm()))
    return float((a - b).norm()) / size if size != 0 else 0.0
