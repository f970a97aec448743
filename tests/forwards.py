"""Forwards that do what Python can do, each with what must come of it; models are `Base` with that forward."""

import functools
import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from networks import linear
from torch import Tensor, nn
from torch.nn import functional as F

SCALES = [1.0]  # a global that changes between steps


class Identity(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h):
        return h

    @staticmethod
    def backward(ctx, g):
        return 2 * g


class Base(nn.Module):
    """What the forwards use: layers, settings of children, a buffer, objects, a class attribute."""

    scale = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = linear(3, 3), linear(3, 3)
        self.register_buffer("k", torch.full((1,), 2.0))
        self.config = SimpleNamespace(inner=SimpleNamespace(factor=2.0))
        self.act, self.drop = nn.LeakyReLU(0.1), nn.Dropout(0.5)
        self.count, self.log, self.tensors = 0, [], [torch.ones(1, dtype=torch.float64)]


def _changed(m: Base) -> None:
    """What happens to a model between two steps."""
    m.config.inner.factor += 1
    m.act.negative_slope += 0.1
    m.k.mul_(2)
    m.tensors[0] = m.tensors[0] * 2


FORWARDS: dict[str, tuple[Any, str | None]] = {}  # forward, and what a refusal says; None: it is right


def forward(refusal: str | None = None) -> Any:
    def note(function: Any) -> Any:
        FORWARDS[function.__name__.strip("_").replace("_", " ")] = function, refusal
        return function

    return note


IN_PLACE, CONTEXT, STATE, DICE = "writes in place", "context of its own", "changes its attribute", "random numbers"


@forward(IN_PLACE)
def rectified_through_a_view(m, x):
    h = m.a(x)
    h[:, :1].relu_()
    return h


@forward(IN_PLACE)
def scaled_through_a_view(m, x):
    h = m.a(x)
    h.view(-1).mul_(2)
    return h


@forward(IN_PLACE)
def zeroed_through_a_view(m, x):
    h = m.a(x)
    h[:1].zero_()
    return h


@forward(IN_PLACE)
def a_view_read_after_a_write(m, x):
    h = m.a(x)
    k = h.view(-1, 1)
    h.relu_()
    return k


@forward("item assignment")
def an_element_assigned(m, x):
    h = m.a(x)
    h[0] = 0
    return h


@forward()
def augmented_with_an_alias(m, x):
    h = m.a(x)
    skip = h
    h += m.b(x)
    return h + skip


@forward()
def augmented_after_it_was_stored(m, x):
    h, skips = m.a(x), []
    skips.append(h)
    h *= 3
    return h + skips[0]


@forward(IN_PLACE)
def a_view_augmented(m, x):
    h = m.a(x)
    v = h[:, :1]
    v *= 3
    return h


@forward("writes to a parameter or buffer")
def a_size_augmented(m, x):
    n = x.shape[0]
    n += 1
    return m.a(x) * n * x.shape[0]


@forward()
def a_function_of_a_buffer(m, x):
    return m.a(x) * (m.k * 2)


@forward()
def a_comparison_of_a_buffer(m, x):
    return m.a(x) * (m.k > 3)


@forward()
def a_number_from_a_buffer(m, x):
    return m.a(x) * m.k.item()


@forward(IN_PLACE)
def a_buffer_written(m, x):
    m.k.add_(1)
    return m.a(x)


@forward(STATE)
def a_buffer_assigned(m, x):
    m.k = m.k + 1
    return m.a(x)


@forward(STATE)
def calls_counted(m, x):
    m.count += 1
    return m.a(x) * m.count


@forward(STATE)
def an_activation_stored(m, x):
    m.last = h = m.a(x)
    return h


@forward(STATE)
def a_list_appended_to(m, x):
    m.log.append(1)
    return m.a(x)


@forward(STATE)
def a_mode_set(m, x):
    m.drop.train(False)
    return m.drop(m.a(x))


@forward()
def a_nested_object(m, x):
    return m.a(x) * m.config.inner.factor


@forward()
def a_setting_of_a_child(m, x):
    return F.leaky_relu(m.a(x), m.act.negative_slope)


@forward()
def a_global(m, x):
    return m.a(x) * SCALES[0]


def _twice(h: Tensor) -> Tensor:
    return h * SCALES[0]


@forward()
def a_global_of_a_helper(m, x):
    return _twice(m.a(x))


@forward()
def a_class_attribute(m, x):
    return m.a(x) * m.scale


@forward("Register it as a buffer")
def a_tensor_in_a_list(m, x):
    return m.a(x) * m.tensors[0]


@forward("Register it as a buffer")
def a_tensor_of_numbers(m, x):
    return m.a(x) * torch.tensor([3.0], dtype=torch.float64)


@forward()
def hasattr_of_a_tensor(m, x):
    return m.a(x) if hasattr(x, "nothing") else m.a(x) * 3


@forward()
def an_attribute_tried(m, x):
    try:
        return x.nothing
    except AttributeError:
        return m.a(x) * 3


@forward()
def isinstance_of_a_tensor(m, x):
    return m.a(x) * 3 if isinstance(x, Tensor) else m.a(x)


@forward()
def is_tensor(m, x):
    return m.a(x) * 3 if torch.is_tensor(x) else m.a(x)


@forward()
def is_grad_enabled(m, x):
    return m.a(x) * 3 if torch.is_grad_enabled() else m.a(x)


@forward(DICE)
def dice_of_python(m, x):
    return m.a(x) * random.random()


@forward(DICE)
def dice_of_numpy(m, x):
    return m.a(x) * float(np.random.rand())  # noqa: NPY002


@forward(DICE)
def dice_of_torch(m, x):
    return m.a(x) * torch.rand(1, dtype=torch.float64)


@forward("cannot be traced")
def dice_of_the_batch_s_size(m, x):
    return m.a(x) * torch.rand(x.shape[0], 1, dtype=torch.float64)


@forward(CONTEXT)
def under_no_grad(m, x):
    with torch.no_grad():
        frozen = m.b(x)
    return m.a(x) + frozen


@forward(CONTEXT)
def under_no_grad_in_a_try(m, x):
    try:
        with torch.no_grad():
            frozen = m.b(x)
    except Exception:
        frozen = 0
    return m.a(x) + frozen


@forward(CONTEXT)
def under_set_grad_enabled(m, x):
    torch.set_grad_enabled(False)
    frozen = m.b(x)
    torch.set_grad_enabled(True)
    return m.a(x) + frozen


@forward(CONTEXT)
def under_inference_mode(m, x):
    with torch.inference_mode():
        frozen = m.b(x)
    return m.a(x) + frozen


@forward(CONTEXT)
def under_autocast(m, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        h = m.a(x)
    return h.double()


@forward("carries no gradient")
def detached(m, x):
    return m.a(x) + m.b(x).detach()


@forward("carries no gradient")
def its_data(m, x):
    return m.a(x) + m.b(x).data


@forward("autograd.Function Identity")
def a_function_with_a_backward(m, x):
    return Identity.apply(m.a(x))


@forward()
def a_partial(m, x):
    return functools.partial(F.leaky_relu, negative_slope=0.2)(m.a(x))


@forward()
def any_arguments(m, *xs):
    return m.a(xs[0])


@forward()
def any_keywords(m, x, **options):
    return m.a(x) * options.get("factor", 3)


@forward()
def a_default_container(m, x, scales=(1.0, 2.0)):
    return m.a(x) * scales[1]


@forward("control flow")
def a_branch_on_a_shape(m, x):
    return m.a(x) * 3 if x.shape[0] > 1 else m.a(x)


@forward("compares or chooses")
def a_mask_of_its_own(m, x):
    h = m.a(x)
    return h * (h > 0)


def model_of(function: Any) -> Base:
    """A new model whose class has this forward."""
    kind = type("Model", (Base,), {"forward": function, "__module__": __name__})
    made: Base = kind().double()
    return made


def change(models: list[Base]) -> None:
    """Change what these models, of one class, and their forwards read."""
    for model in models:
        _changed(model)
    SCALES[0] += 1
    type(models[0]).scale += 1
