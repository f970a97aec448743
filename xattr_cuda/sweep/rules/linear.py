"""Rules of products with a matrix: linear layers, matmul and einsum against a parameter."""

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ... import ops
from ..layer import Frame, Layer, Pair, Residual, biased, not_homogeneous, unsupported
from .registry import Call, Constant, Value, register_function, register_module


class LinearRule(Layer):
    """h -> h W^T, for h [..., K] and W [N, K]. The `masked` forms apply a neighbouring activation on the way out."""

    apart = True
    fuses = True

    def _check(self, h: Tensor, weight: Tensor) -> None:
        if h.shape[-1] != weight.shape[1] or h.dim() < 2:
            raise ValueError(f"{self.where} wants [B, ..., {weight.shape[1]}], got {list(h.shape)}")
        if h.dtype != weight.dtype or h.device != weight.device:
            raise ValueError(
                f"{self.where} has a weight of {weight.dtype} on {weight.device}, "
                f"got {h.dtype} on {h.device}; convert the inputs or the model"
            )

    def forward(self, params: Sequence[Tensor], *inputs: Tensor) -> tuple[Tensor, Residual]:
        (h,), (weight,) = inputs, params
        self._check(h, weight)
        return F.linear(h, weight), ()

    def forward_masked(self, params: Sequence[Tensor], h: Tensor, slope: Tensor | None) -> tuple[Tensor, Tensor]:
        self._check(h, params[0])
        return ops.linear_relu_mask(h, params[0], slope)

    def tangent(self, frame: Frame, *tangents: Tensor) -> Tensor:
        return F.linear(tangents[0], frame.params[0])

    def tangent_masked(self, frame: Frame, v: Tensor, bits: Tensor, slope: Tensor | None) -> Tensor:
        return ops.matmul_mask(v, frame.params[0].t(), bits, slope)

    def cotangent(self, frame: Frame, g: Tensor) -> Tensor:
        return ops.matmul_mask(g, frame.params[0])

    def cotangent_masked(self, frame: Frame, g: Tensor, bits: Tensor, slope: Tensor | None) -> Tensor:
        return ops.matmul_mask(g, frame.params[0], bits, slope)

    def parameter_gradients(self, frame: Frame, pairs: Sequence[Pair]) -> tuple[Tensor, ...]:
        return (ops.dual_weight_grad(*(t for pair in pairs for t in pair)),)

    def joins_chains(self, frame: Frame) -> bool:
        return True


class MatmulRule(Layer):
    """h -> h @ W, or W @ h with `left`, with torch.matmul's broadcasting; W has at least two dimensions."""

    apart = True

    def __init__(self, left: bool) -> None:
        self.left = left

    def multiply(self, h: Tensor, matrix: Tensor) -> Tensor:
        return matrix @ h if self.left else h @ matrix

    def forward(self, params: Sequence[Tensor], *inputs: Tensor) -> tuple[Tensor, Residual]:
        (h,), (matrix,) = inputs, params
        if h.dim() < 2 or matrix.dim() < 2:
            raise ValueError(f"{self.where} wants at least two dimensions, got {list(h.shape)}, {list(matrix.shape)}")
        return self.multiply(h, matrix), ()

    def tangent(self, frame: Frame, *tangents: Tensor) -> Tensor:
        return self.multiply(tangents[0], frame.params[0])

    def cotangent(self, frame: Frame, g: Tensor) -> Tensor:
        return self.multiply(g, frame.params[0].mT).sum_to_size(frame.shapes[0])

    def parameter_gradients(self, frame: Frame, pairs: Sequence[Pair]) -> tuple[Tensor, ...]:
        total = sum(g @ v.mT if self.left else v.mT @ g for g, v in pairs)
        assert isinstance(total, Tensor)
        return (total.sum_to_size(frame.params[0].shape),)


class EinsumRule(Layer):
    """An einsum of the layer's input with one parameter. Subscripts: of the input, the parameter, the output."""

    apart = True

    def __init__(self, of_input: str, of_param: str, of_output: str) -> None:
        self.of_input, self.of_param, self.of_output = of_input, of_param, of_output

    def forward(self, params: Sequence[Tensor], *inputs: Tensor) -> tuple[Tensor, Residual]:
        return torch.einsum(f"{self.of_input},{self.of_param}->{self.of_output}", *inputs, *params), ()

    def tangent(self, frame: Frame, *tangents: Tensor) -> Tensor:
        return self.forward(frame.params, *tangents)[0]

    def _transposed(self, a: str, left: Tensor, b: str, right: Tensor, out: str, shape: Sequence[int]) -> Tensor:
        """The einsum of two factors with subscripts a and b; out's subscripts that neither has were summed over."""
        known = "".join(c for c in out if c in a + b)
        result = torch.einsum(f"{a},{b}->{known}", left, right)
        missing = [slice(None) if c in known else None for c in out]
        return result[tuple(missing)].expand(shape)

    def cotangent(self, frame: Frame, g: Tensor) -> Tensor:
        (param,), (shape,) = frame.params, frame.shapes
        return self._transposed(self.of_output, g, self.of_param, param, self.of_input, shape)

    def parameter_gradients(self, frame: Frame, pairs: Sequence[Pair]) -> tuple[Tensor, ...]:
        shape = frame.params[0].shape
        total = sum(self._transposed(self.of_output, g, self.of_input, v, self.of_param, shape) for g, v in pairs)
        assert isinstance(total, Tensor)
        return (total,)


def _refuse_product() -> Exception:
    return not_homogeneous(
        "it multiplies two tensors that both depend on the network's input, so its output scales with the square",
        "Multiply by a parameter instead",
    )


def _linear_module(module: nn.Linear) -> Layer:
    if module.bias is not None:
        raise biased()
    return LinearRule()


def _linear(input: Any, weight: Any, bias: Any = None) -> Call:  # noqa: A002
    if bias is not None:
        raise biased()
    if not isinstance(input, Value) or not isinstance(weight, Constant):
        raise _refuse_product()
    return Call(LinearRule(), (input,), (weight,))


def _matmul(input: Any, other: Any) -> Call:  # noqa: A002
    if isinstance(input, Value) and isinstance(other, Value):
        raise _refuse_product()
    left = isinstance(input, Constant)
    value, matrix = (other, input) if left else (input, other)
    if not isinstance(value, Value) or not isinstance(matrix, Constant):
        raise unsupported("it does not multiply a tensor by a parameter", "Multiply by a parameter or a buffer")
    return Call(MatmulRule(left), (value,), (matrix,))


def _einsum(equation: str, *operands: Any) -> Call:
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = tuple(operands[0])
    terms = equation.replace(" ", "").split("->")
    subscripts = terms[0].split(",")
    if len(operands) != 2 or len(subscripts) != 2:
        raise unsupported(f"einsum of {len(operands)} operands", "Use two: a tensor and a parameter")
    if all(isinstance(operand, Value) for operand in operands):
        raise _refuse_product()
    if len(terms) != 2 or "." in equation or any(len(set(s)) != len(s) for s in (*subscripts, terms[1])):
        raise unsupported(
            f"einsum {equation!r} has an implicit output, an ellipsis or a repeated subscript",
            "Write the subscripts out, with '->' and no diagonal",
        )
    value, param = (0, 1) if isinstance(operands[0], Value) else (1, 0)
    layer = EinsumRule(subscripts[value], subscripts[param], terms[1])
    return Call(layer, (operands[value],), (operands[param],))


register_module(nn.Linear, build=_linear_module, tensors=("weight",))
register_function(F.linear, build=_linear)
register_function(
    *(torch.matmul, torch.mm, torch.bmm, operator.matmul, "matmul", "mm", "bmm", "__matmul__"), build=_matmul
)
register_function(torch.einsum, build=_einsum)
