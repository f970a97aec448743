"""Errors, the eager double backward that the sweeps replace, and comparisons of the two."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cases import cast
from torch import Tensor, nn

Step = dict[str, Tensor | None]
"""What one training step computes, by name: output, attribution, and the gradient of every leaf."""

Loss = Callable[[Tensor, Tensor], Tensor]


def relative_error(got: Tensor, want: Tensor) -> float:
    """Norm of the difference over the norm of `want`, or the norm of the difference where `want` is zero."""
    got, want = got.detach().double(), want.detach().double()
    size = want.norm()
    return float((got - want).norm() / (size if size > 0 else 1))


def _largest(t: Tensor) -> float:
    return float(t.detach().double().abs().max()) if t.numel() else 0.0


def assert_within(got: Tensor, truth: Tensor, error: float, what: str) -> None:
    """The largest error of `got` against `truth` is at most twice `error`, PyTorch's own at the same dtype.

    PyTorch may be exact by luck where another order of summation is not, so one unit in the last place of the largest
    value is always allowed.
    """
    assert got.shape == truth.shape, f"{what}: shape {list(got.shape)}, wanted {list(truth.shape)}"
    found, limit = _largest(got.double() - truth), 2 * error + torch.finfo(got.dtype).eps * _largest(truth)
    assert found <= limit, f"{what}: error {found:.3g}, twice PyTorch's own is {limit:.3g}"


def assert_within_twice(got: Tensor, plain: Tensor, truth: Tensor, what: str) -> None:
    """`assert_within` the error of `plain`, what PyTorch computes at the dtype of `got`."""
    assert got.dtype == plain.dtype, f"{what}: dtype {got.dtype}, PyTorch has {plain.dtype}"
    assert_within(got, truth, _largest(plain.double() - truth), what)


def _results(result: Any) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def assert_as_good_as(got: Any, definition: Callable[..., Any], args: tuple[Any, ...], what: str) -> None:
    """Every tensor of `got` is within twice the error that definition(*args) makes in PyTorch at the same dtype.

    The truth is the definition in float64. The error of float64 itself cannot be seen against that, so it is taken to
    be that of float32 on the same values, scaled by the ratio of their precisions, once for PyTorch and once for the
    truth, which is no better.
    """
    dtype = next(t.dtype for t in args if t is not None and t.is_floating_point())
    narrow = torch.float32 if dtype == torch.float64 else dtype
    scale = 1 if dtype == narrow else 2 * torch.finfo(dtype).eps / torch.finfo(narrow).eps
    args32 = cast(args, narrow)
    plain, plain_truth = _results(definition(*args32)), _results(definition(*cast(args32, torch.float64)))
    truth = _results(definition(*cast(args, torch.float64)))
    for g, p, pt, t in zip(_results(got), plain, plain_truth, truth, strict=True):
        assert g.dtype == dtype, f"{what}: dtype {g.dtype}, wanted {dtype}"
        assert_within(g, t, scale * _largest(p.double() - pt), what)


def curved_loss(output: Tensor, attribution: Tensor) -> Tensor:
    """A smooth loss of both results, nonlinear in each, so that every gradient is generic."""
    return output.sin().sum() + (3 * attribution).sin().sum() + attribution.square().sum()


def output_loss(output: Tensor, attribution: Tensor) -> Tensor:
    return output.sin().sum()


def attribution_loss(output: Tensor, attribution: Tensor) -> Tensor:
    return (3 * attribution).sin().sum()


def picked(output: Tensor, target: Any) -> Tensor:
    """The sum over the batch of the outputs that `target` names."""
    if target is None:
        return output.sum()
    if isinstance(target, Tensor):
        index = target.reshape(-1, 1)
        return output.gather(1, index % output.shape[1]).sum() if len(index) == len(output) else output[:, index].sum()
    if isinstance(target, list):
        rows = [i if isinstance(i, tuple) else (i,) for i in target]
        return torch.stack([output[(b, *i)] for b, i in enumerate(rows)]).sum()
    return output[(slice(None), *(target if isinstance(target, tuple) else (target,)))].sum()


def eager_attribute(
    model: nn.Module, x: Tensor, target: Any = None, *, cotangent: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`xa.attribute` by double backward."""
    output = model(x)
    explained = picked(output, target) if cotangent is None else (output * cotangent).sum()
    (gradient,) = torch.autograd.grad(explained, x, create_graph=True)
    return output, x * gradient


def eager_attribute_loss(
    model: nn.Module, x: Tensor, criterion: Callable[..., Tensor], *args: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """`xa.attribute_loss` by double backward."""
    output = model(x)
    loss = criterion(output, *args)
    (u,) = torch.autograd.grad(loss, output, retain_graph=True)
    (gradient,) = torch.autograd.grad(output, x, u, create_graph=True)
    return loss, output, x * gradient


def collect(total: Tensor, results: dict[str, Tensor], leaves: dict[str, Tensor | None]) -> Step:
    """The results of a step and the gradients of `total` in all leaves that require one."""
    wanted = {name: t for name, t in leaves.items() if t is not None and t.requires_grad}
    found = torch.autograd.grad(total, list(wanted.values()), allow_unused=True)
    gradients = {f"gradient of {name}": g for name, g in zip(wanted, found, strict=True)}
    return {**{name: t.detach() for name, t in results.items()}, **gradients}


def run_step(
    attribute: Callable[..., Any],
    model: nn.Module,
    x: Tensor,
    target: Any = None,
    *,
    cotangent: Tensor | None = None,
    loss: Loss = curved_loss,
    input_grad: bool = True,
    seed: int = 0,
) -> Step:
    """One step with `attribute`, either xa.attribute or eager_attribute, from leaves of its own."""
    torch.manual_seed(seed)
    x = x.detach().requires_grad_(input_grad)
    if cotangent is not None:
        cotangent = cotangent.detach().requires_grad_()
    output, attribution = attribute(model, x, target, cotangent=cotangent)
    leaves = {**dict(model.named_parameters()), "the input": x, "the cotangent": cotangent}
    return collect(loss(output, attribution), {"output": output, "attribution": attribution}, leaves)


def assert_same_step(got: Step, want: Step, tolerance: float = 1e-10) -> None:
    """All that `got` holds is in `want`, to a relative error; a gradient of None is one of zero."""
    for name, value in got.items():
        other = want[name]
        if value is None or other is None:
            assert all(t is None or not t.any() for t in (value, other)), f"{name}: None against a gradient"
            continue
        assert value.shape == other.shape, f"{name}: shape {list(value.shape)}, wanted {list(other.shape)}"
        assert value.dtype == other.dtype, f"{name}: dtype {value.dtype}, wanted {other.dtype}"
        error = relative_error(value, other)
        assert error <= tolerance, f"{name}: relative error {error:.3g}, allowed {tolerance:.3g}"


def run_python(code: str) -> "subprocess.CompletedProcess[str]":
    """The finished process of a program, in which warnings are errors."""
    command, elsewhere = [sys.executable, "-W", "error", "-c", code], Path(__file__).anchor
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=elsewhere)
