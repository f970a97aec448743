"""First-order derivatives of the operators, in terms of the operators themselves.

One `Derivative` an operator: what its forward pass keeps and what its backward pass returns. They serve whoever calls
an operator by hand; the sweeps carry derivatives of their own and run below autograd.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

ops = torch.ops.xattr


class Derivative(NamedTuple):
    setup_context: Callable[..., None]
    backward: Callable[..., Any]


def _needs(ctx: Any, count: int) -> tuple[bool, ...]:
    """Which of `count` inputs need a gradient. Inputs left at their default do not reach the context."""
    given: tuple[bool, ...] = ctx.needs_input_grad
    return given + (False,) * (count - len(given))


def _flat(t: Tensor) -> Tensor:
    return t.flatten(0, -2)  # [rows, N]


def _slope_grad(d: Tensor, z: Tensor, bits: Tensor, slope: Tensor) -> Tensor:
    """Gradient of a slope: d * z summed over what the mask leaves out, in the shape of the slope."""
    d, z, bits = (t.unsqueeze(0) if t.dim() == 1 else t for t in (d, z, bits))
    product = _flat(ops.mask_mul(d * z, ~bits))  # [rows, N]
    total = product.sum(dtype=torch.float64).reshape(1) if slope.numel() == 1 else product.sum(0, dtype=torch.float64)
    return total.to(slope.dtype)


def _weight_grad(left: Tensor, right: Tensor) -> Tensor:
    left, right = (t.unsqueeze(0) if t.dim() == 1 else t for t in (left, right))
    return _flat(left).T @ _flat(right)


def _relu_mask_setup(ctx: Any, inputs: Any, output: Any) -> None:
    z, slope = inputs
    keep_z = slope is not None and slope.requires_grad
    ctx.save_for_backward(z if keep_z else None, slope, output[1])


def _relu_mask_backward(ctx: Any, dh: Tensor, _: Any) -> Any:
    z, slope, bits = ctx.saved_tensors
    needs_z, needs_slope = _needs(ctx, 2)
    dz = ops.mask_mul(dh, bits, slope) if needs_z else None
    return dz, _slope_grad(dh, z, bits, slope) if needs_slope else None


def _mask_mul_setup(ctx: Any, inputs: Any, output: Any) -> None:
    t, bits, slope = inputs
    keep_t = slope is not None and slope.requires_grad
    ctx.save_for_backward(t if keep_t else None, bits, slope)


def _mask_mul_backward(ctx: Any, d: Tensor) -> Any:
    t, bits, slope = ctx.saved_tensors
    needs_t, _, needs_slope = _needs(ctx, 3)
    dt = ops.mask_mul(d, bits, slope) if needs_t else None
    return dt, None, _slope_grad(d, t, bits, slope) if needs_slope else None


def _add_relu_mask_setup(ctx: Any, inputs: Any, output: Any) -> None:
    a, b, slope = inputs
    keep = slope is not None and slope.requires_grad
    ctx.save_for_backward(a if keep else None, b if keep else None, slope, output[1])


def _add_relu_mask_backward(ctx: Any, dh: Tensor, _: Any) -> Any:
    a, b, slope, bits = ctx.saved_tensors
    needs_a, needs_b, needs_slope = _needs(ctx, 3)
    dz = ops.mask_mul(dh, bits, slope) if needs_a or needs_b else None
    dslope = _slope_grad(dh, a + b, bits, slope) if needs_slope else None
    return dz if needs_a else None, dz if needs_b else None, dslope


def _linear_relu_mask_setup(ctx: Any, inputs: Any, output: Any) -> None:
    x, weight, slope = inputs
    ctx.save_for_backward(x, weight, slope, output[1])


def _linear_relu_mask_backward(ctx: Any, dh: Tensor, _: Any) -> Any:
    x, weight, slope, bits = ctx.saved_tensors
    needs_x, needs_weight, needs_slope = _needs(ctx, 3)
    dz = ops.mask_mul(dh, bits, slope)
    dslope = _slope_grad(dh, x @ weight.T, bits, slope) if needs_slope else None
    return dz @ weight if needs_x else None, _weight_grad(dz, x) if needs_weight else None, dslope


def _matmul_mask_setup(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _matmul_mask_backward(ctx: Any, d: Tensor) -> Any:
    t, matrix, bits, slope = ctx.saved_tensors
    needs_t, needs_matrix, _, needs_slope = _needs(ctx, 4)
    dz = d if bits is None else ops.mask_mul(d, bits, slope)
    dslope = _slope_grad(d, t @ matrix, bits, slope) if needs_slope else None
    return dz @ matrix.T if needs_t else None, _weight_grad(t, dz) if needs_matrix else None, None, dslope


def _dual_weight_grad_setup(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _dual_weight_grad_backward(ctx: Any, d: Tensor) -> Any:
    delta, h, g, v = ctx.saved_tensors
    needs = _needs(ctx, 4)
    return (
        h @ d.T if needs[0] else None,
        delta @ d if needs[1] else None,
        v @ d.T if needs[2] else None,
        g @ d if needs[3] else None,
    )


def _max_pool_setup(ctx: Any, inputs: Any, output: Any) -> None:
    h, *ctx.geometry, _ = inputs
    ctx.shape = h.shape
    ctx.save_for_backward(output[1])


def _max_pool_backward(ctx: Any, dout: Tensor, _: Any) -> Any:
    (idx,) = ctx.saved_tensors
    return ops.pool_pull(dout, idx, ctx.shape, *ctx.geometry), *(None,) * 5


def _pool_pull_setup(ctx: Any, inputs: Any, output: Any) -> None:
    _, idx, _, *ctx.geometry = inputs
    ctx.save_for_backward(idx)


def _pool_pull_backward(ctx: Any, d: Tensor) -> Any:
    (idx,) = ctx.saved_tensors
    return ops.pool_push(d, idx, *ctx.geometry), *(None,) * 6


def _pool_push_setup(ctx: Any, inputs: Any, output: Any) -> None:
    v, idx, *ctx.geometry = inputs
    ctx.shape = v.shape
    ctx.save_for_backward(idx)


def _pool_push_backward(ctx: Any, d: Tensor) -> Any:
    (idx,) = ctx.saved_tensors
    return ops.pool_pull(d, idx, ctx.shape, *ctx.geometry), *(None,) * 5


def _input_times_gradient_setup(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs, output[0])
    ctx.set_materialize_grads(False)


def _input_times_gradient_backward(
    ctx: Any, da: Tensor | None, dmean: Tensor | None, dl1: Tensor | None, dl2: Tensor | None
) -> Any:
    """The sums are functions of the attribution: what comes from them joins its cotangent, in their own precision."""
    x, g, scale, a = ctx.saved_tensors
    needs_x, needs_g, needs_scale = _needs(ctx, 3)
    each = (-1, *[1] * (a.dim() - 1))  # the shape of one number a sample
    wide = torch.promote_types(a.dtype, torch.float32)
    total = torch.zeros_like(a, dtype=wide) if da is None else da.to(wide)
    if dmean is not None:
        total = total + a.sign() * (dmean / max(len(a), 1))
    if dl1 is not None:
        total = total + a.sign() * dl1.view(each)
    if dl2 is not None:
        total = total + 2 * a * dl2.view(each)
    dscale = None
    if needs_scale:  # one number of many products: summed so that it is rounded once
        products = total.double() * (x.double() * g)
        dscale = (products.flatten(1).sum(1) if a.dim() > 1 else products).to(a.dtype)
    scaled = total if scale is None else total * scale.view(each)
    return (
        (scaled * g).to(a.dtype) if needs_x else None,
        (scaled * x).to(a.dtype) if needs_g else None,
        dscale,
    )


def _gini_setup(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(inputs[0], output[1])
    ctx.set_materialize_grads(False)


def _gini_backward(ctx: Any, dvalue: Tensor | None, dgradient: Tensor | None) -> Any:
    """The gradient is differentiable too: d(dG/da_i)/da_j = -(g_i + g_j) / sum(a), the ranks being constant."""
    a, gradient = ctx.saved_tensors
    da = torch.zeros_like(a) if dvalue is None else dvalue * gradient
    if dgradient is not None:
        total = a.sum()
        curvature = dgradient.sum() * gradient + (dgradient * gradient).sum()
        da = da - torch.where(total != 0, curvature / total, torch.zeros_like(curvature))
    return da


def _mlp_attribute_setup(ctx: Any, inputs: Any, output: Any) -> None:
    x, weights, ctx.slopes, u, *kept = inputs
    _, _, bits, h, g = output
    ctx.mark_non_differentiable(*bits, *h, *g)
    # PyTorch takes an empty list for one of tensors, and wants a list of no gradients for it.
    ctx.of_numbers = [None if numbers else [] for numbers in (ctx.slopes, *kept)]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, u, *weights)


def _mlp_attribute_backward(ctx: Any, dy: Tensor | None, a: Tensor | None, *_: Any) -> Any:
    """Design section 2, two chains. What they need is found again: only the sweeps know what is worth keeping."""
    x, u, *weights = ctx.saved_tensors
    layers, (of_slopes, *of_kept) = len(weights), ctx.of_numbers
    a = None if u is None else a  # without u there is none
    if dy is None and a is None:
        return None, [None] * layers, of_slopes, None, *of_kept
    keep_g = [] if a is None else list(range(layers))
    _, _, bits, h, g = ops.mlp_attribute(
        x, weights, ctx.slopes, None if a is None else u, list(range(1, layers)), keep_g
    )
    gradients, v_end, delta_end = ops.mlp_attribute_backward(
        *(None if a is None else x, a, None, None, dy),
        *(weights, ctx.slopes, bits, [] if a is None else [*g[1:], u], [] if dy is None else [x, *h]),
        list(range(1, layers + 1)),
        *(a is not None, dy is not None),
    )
    dx = delta_end if a is None else a * g[0] if dy is None else delta_end + a * g[0]
    return dx, gradients, of_slopes, None if a is None else v_end, *of_kept


def _no_setup(ctx: Any, inputs: Any, output: Any) -> None:
    pass


def _mlp_attribute_backward_backward(ctx: Any, *_: Any) -> Any:
    raise NotImplementedError(
        "xattr::mlp_attribute_backward is the end of a first-order derivative and has none of its own; "
        "for second order use xa.attribute(..., engine='autograd')"
    )


DERIVATIVES = {
    "relu_mask": Derivative(_relu_mask_setup, _relu_mask_backward),
    "mask_mul": Derivative(_mask_mul_setup, _mask_mul_backward),
    "add_relu_mask": Derivative(_add_relu_mask_setup, _add_relu_mask_backward),
    "linear_relu_mask": Derivative(_linear_relu_mask_setup, _linear_relu_mask_backward),
    "matmul_mask": Derivative(_matmul_mask_setup, _matmul_mask_backward),
    "dual_weight_grad": Derivative(_dual_weight_grad_setup, _dual_weight_grad_backward),
    "max_pool": Derivative(_max_pool_setup, _max_pool_backward),
    "pool_pull": Derivative(_pool_pull_setup, _pool_pull_backward),
    "pool_push": Derivative(_pool_push_setup, _pool_push_backward),
    "mlp_attribute": Derivative(_mlp_attribute_setup, _mlp_attribute_backward),
    "mlp_attribute_backward": Derivative(_no_setup, _mlp_attribute_backward_backward),
    "input_times_gradient": Derivative(_input_times_gradient_setup, _input_times_gradient_backward),
    "gini": Derivative(_gini_setup, _gini_backward),
}
