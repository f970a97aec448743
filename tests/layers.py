"""A rule against PyTorch: every map of a layer, in float64, for the activation pattern of the inputs at hand."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from xattr_cuda.sweep.layer import Frame, Layer
from xattr_cuda.sweep.rules.registry import Constant, Value, function_rule_of, rule_of

TOLERANCE = 1e-12


class Case(NamedTuple):
    """A layer, what it computes in PyTorch as function(params, *inputs), and arguments."""

    layer: Layer
    function: Callable[..., Tensor]
    params: tuple[Tensor, ...]
    inputs: tuple[Tensor, ...]


def of_module(module: nn.Module, *inputs: Tensor) -> Case:
    """The case of a module and its inputs."""
    module = module.double()
    rule = rule_of(type(module))
    assert rule is not None, f"{type(module).__name__} has no rule"
    names = rule.tensors

    def function(params: Sequence[Tensor], *h: Tensor) -> Tensor:
        return torch.func.functional_call(module, dict(zip(names, params, strict=True)), h)

    return Case(rule.build(module), function, tuple(getattr(module, name).detach() for name in names), inputs)


class Traced(NamedTuple):
    """An argument of a call that depends on the network's inputs."""

    tensor: Tensor


class Param(NamedTuple):
    """An argument of a call that is a parameter or a buffer."""

    tensor: Tensor


def of_call(target: Any, *args: Any, **kwargs: Any) -> Case:
    """The case of a function, or of a tensor method by its name, whose tensors are wrapped in Traced or Param."""
    build = function_rule_of(target)
    assert build is not None, f"{target} has no rule"
    run = target if callable(target) else lambda t, *a, **k: getattr(t, target)(*a, **k)
    values: list[Tensor] = []
    constants: list[Tensor] = []

    def mark(a: Any) -> Any:
        if isinstance(a, Traced):
            values.append(a.tensor)
            return Value(len(values) - 1)
        if isinstance(a, Param):
            constants.append(a.tensor)
            return Constant(len(constants) - 1)
        return type(a)(mark(x) for x in a) if isinstance(a, (list, tuple)) else a

    marked_args, marked_kwargs = [mark(a) for a in args], {k: mark(a) for k, a in kwargs.items()}
    call = build(*marked_args, **marked_kwargs)

    def function(params: Sequence[Tensor], *h: Tensor) -> Tensor:
        of_value = {value.index: t for value, t in zip(call.inputs, h, strict=True)}
        of_constant = {constant.index: t for constant, t in zip(call.params, params, strict=True)}

        def put(a: Any) -> Any:
            if isinstance(a, Value):
                return of_value[a.index]
            if isinstance(a, Constant):
                return of_constant[a.index]
            return type(a)(put(x) for x in a) if isinstance(a, (list, tuple)) else a

        return run(*(put(a) for a in marked_args), **{k: put(a) for k, a in marked_kwargs.items()})

    params = tuple(constants[c.index] for c in call.params)
    return Case(call.layer, function, params, tuple(values[v.index] for v in call.inputs))


def assert_close(got: Tensor, want: Tensor, what: str) -> None:
    assert got.shape == want.shape, f"{what}: shape {list(got.shape)}, wanted {list(want.shape)}"
    assert got.dtype == want.dtype, f"{what}: dtype {got.dtype}, wanted {want.dtype}"
    torch.testing.assert_close(got, want, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True, msg=lambda m: f"{what}: {m}")


def assert_rule(case: Case) -> None:
    """Every map of the layer is the one that PyTorch differentiates to."""
    layer, function, params, inputs = case
    copies = tuple(t.clone() for t in inputs)
    with torch.no_grad():
        out, residual = layer.forward(params, *inputs)
    assert_close(out, function(params, *copies), "forward")
    frame = Frame(params, tuple(t.shape for t in inputs), out.shape, residual)

    # The derivative at the inputs, by double backward: g -> J^T g is linear, and its derivative in g gives J v.
    leaves = [t.clone().requires_grad_() for t in inputs]
    weights = [p.clone().requires_grad_() for p in params]
    g = torch.randn_like(out).requires_grad_()
    v = [torch.randn_like(t) for t in inputs]
    results = torch.autograd.grad(
        function(weights, *(t * 1 for t in leaves)), leaves, g, create_graph=True, materialize_grads=True
    )
    pairing = sum((c * t).sum() for c, t in zip(results, v, strict=True))  # <g, J v>
    wanted = torch.autograd.grad(pairing, [g, *weights], allow_unused=True, materialize_grads=True)
    with torch.no_grad():
        saved = [t.clone() for t in (*v, g)]
        assert_close(layer.tangent(frame, *v), wanted[0], "tangent")
        found = layer.cotangent(frame, g.detach())
        for c, w in zip((found,) if isinstance(found, Tensor) else found, results, strict=True):
            assert_close(c, w.detach(), "cotangent")
        if params:
            twice = layer.parameter_gradients(frame, [(g.detach(), v[0]), (g.detach(), v[0])])
            for d, w in zip(twice, wanted[1:], strict=True):
                assert d is not None
                assert_close(d, 2 * w, "gradient of a parameter")
        assert all(torch.equal(a, b) for a, b in zip(saved, (*v, g), strict=True)), "a map wrote to its argument"
    assert all(torch.equal(a, b) for a, b in zip(copies, inputs, strict=True)), "forward wrote to its argument"
