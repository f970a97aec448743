"""What every rule's maps must do beside being right: foresee shapes, keep dtypes, take empty batches."""

from collections.abc import Callable
from typing import Any

import torch
from layers import Case
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from xattr_cuda.sweep.layer import Frame

CL = torch.channels_last


def randn(*shape: int, **kwargs: Any) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, **kwargs)


def maps(case: Case) -> list[Tensor]:
    """The output, the tangent for tangents equal to the inputs, and the cotangents for one equal to the output."""
    layer, _, params, inputs = case
    out, residual = layer.forward(params, *inputs)
    frame = Frame(params, tuple(t.shape for t in inputs), out.shape, residual)
    back = layer.cotangent(frame, out)
    found = [out, layer.tangent(frame, *inputs), *((back,) if isinstance(back, Tensor) else back)]
    return found + [g for g in layer.parameter_gradients(frame, [(out, inputs[0])]) if g is not None]


def with_tensors(case: Case, function: Callable[[Tensor], Tensor]) -> Case:
    """The case of other tensors; integers among the parameters stay."""
    params = tuple(function(p) if p.is_floating_point() else p for p in case.params)
    return case._replace(params=params, inputs=tuple(function(t) for t in case.inputs))


def assert_foreseen(case: Case) -> None:
    """On tensors without data the maps return the same shapes, strides and dtypes."""
    with FakeTensorMode() as mode:
        fake = maps(
            case._replace(
                params=tuple(map(mode.from_tensor, case.params)), inputs=tuple(map(mode.from_tensor, case.inputs))
            )
        )
    for f, t in zip(fake, maps(case), strict=True):
        assert (f.shape, f.stride(), f.dtype) == (t.shape, t.stride(), t.dtype)


def assert_keeps_dtypes(case: Case) -> None:
    """Every map stays in the dtype of its tensors, and near float64."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        narrow = with_tensors(case, lambda t, dtype=dtype: t.to(dtype))
        wanted = maps(with_tensors(narrow, lambda t: t.double()))
        size = max(t.double().norm() for t in (*wanted, *narrow.inputs))
        for t, want in zip(maps(narrow), wanted, strict=True):
            assert t.dtype == dtype
            assert (t.double() - want).norm() <= 8 * torch.finfo(dtype).eps * size


def serves_empty_batch(case: Case) -> bool:
    """Whether PyTorch takes an empty batch. Where it does, so do all maps, and the shapes are right."""
    inputs = tuple(t[:0] if t.dim() and t.shape[0] == case.inputs[0].shape[0] else t for t in case.inputs)
    try:
        want = case.function(case.params, *inputs)
    except (RuntimeError, IndexError, ValueError):
        return False
    found = maps(case._replace(inputs=inputs))
    assert found[0].shape == found[1].shape == want.shape
    for t, like in zip(found[2:], (*inputs, *case.params), strict=False):
        assert t.shape == like.shape
    return True
