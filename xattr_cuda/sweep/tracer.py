"""What torch.fx looks into, and what a trace cannot carry: it records calls of tensors, and runs all other Python once.

Whatever a forward does beside calling functions of tensors would count once, at the trace. It is refused here.
"""

import operator
import random
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor, fx, nn

from .errors import LayerError, UnsupportedLayerError
from .layer import unsupported
from .rules.registry import rule_of

_one_at_a_time = threading.RLock()  # fx patches nn.Module while it traces; two traces would undo each other's patch
_INSIDE_FX = fx.__path__[0]
_FUNCTION = torch.autograd.Function.apply.__func__.__code__  # type: ignore[attr-defined]
CONSTANT = "constant_"  # what the placeholder of a constant tensor is called, before its index
_AUTOGRAD = 'Take such a model with engine="autograd", by double backward'


class _Proxy(fx.Proxy):
    """A proxy that `isinstance` takes for the tensor that it stands for, wherever a forward asks.

    Only there: C++ that took it for a tensor would read what is not there.
    """

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # type: ignore[override]
        tracer = self.__dict__.get("tracer")
        return Tensor if tracer is not None and tracer.asked else type(self)

    def __getattr__(self, k: str) -> Any:
        if not hasattr(Tensor, k):
            raise AttributeError(f"a tensor has no attribute {k!r}")
        return super().__getattr__(k)


def _writes(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda self, other: self.tracer.create_proxy("call_function", function, (self, other), {})


for _function in (operator.iadd, operator.isub, operator.imul, operator.itruediv):
    setattr(_Proxy, f"__{_function.__name__}__", _writes(_function))  # fx would make `h += y` a new tensor of it


def _modes() -> tuple[Any, ...]:
    autocast = tuple([(torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")])
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), autocast


class Tracer(fx.Tracer):
    """A tracer whose leaves are the layers of a program."""

    proxy_buffer_attributes = True  # what a forward makes of a buffer is made anew at every step

    def __init__(self, inputs: int, extras: Sequence[Any]) -> None:
        super().__init__()
        self.inputs, self.extras = inputs, extras
        self.asked = False
        self._modes = _modes()
        self.refused: list[LayerError] = []  # kept, since a forward may catch what is raised

    def where(self) -> str:
        """The qualified name of the module whose forward runs."""
        return next((str(target) for target, _ in reversed(self.module_stack.values())), "")

    def refuse(self, reason: str, remedy: str) -> None:
        """Note and raise that the forward cannot be traced."""
        kind = next((kind.__name__ for _, kind in reversed(self.module_stack.values())), type(self.root).__name__)
        self.refused.append(UnsupportedLayerError(self.where(), kind, reason, remedy))
        raise self.refused[-1]

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        """(forward, arguments): it is called as double backward calls it, its defaults left to Python."""
        xs = [self.create_proxy("placeholder", f"input_{i}", (), {}) for i in range(self.inputs)]
        constants = [
            self.create_proxy("placeholder", f"{CONSTANT}{i}", (), {}) if isinstance(extra, Tensor) else extra
            for i, extra in enumerate(self.extras)
        ]
        return root_fn, [self.root, *xs, *constants]

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_node(self, kind: str, *args: Any, **kwargs: Any) -> fx.Node:
        if kind.startswith("call") and self._modes != _modes():
            self.refuse(
                "its forward computes in a context of its own (no_grad, inference_mode or autocast), which a trace "
                "does not record",
                _AUTOGRAD,
            )
        return super().create_node(kind, *args, **kwargs)

    def watch(self, frame: FrameType, event: str, arg: Any) -> None:
        """Refuse calls of autograd.Function, which would be traced through as if PyTorch differentiated them.

        Also note when `isinstance` is asked by what is no part of fx.
        """
        if event.startswith("c_") and arg is isinstance:
            self.asked = event == "c_call" and not frame.f_code.co_filename.startswith(_INSIDE_FX)
        if event == "call" and frame.f_code is _FUNCTION:
            name = frame.f_locals["cls"].__name__
            self.refuse(f"its forward calls the autograd.Function {name}, whose backward has no rule", _AUTOGRAD)

    def traced(self, model: nn.Module) -> fx.Graph:
        """The graph of a model's forward. Raises what was refused, whether or not the forward has caught it."""
        profile = sys.getprofile()
        sys.setprofile(self.watch)
        try:
            with _one_at_a_time, dice_refused():
                graph = self.trace(model)
        finally:
            sys.setprofile(profile)
            for error in self.refused:
                raise error
        return graph

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return rule_of(type(m)) is not None or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        return super().call_module(m, m.forward, args, kwargs)  # hooks are no part of the network, and want tensors


def _dice() -> list[tuple[Callable[[Any], Any], Any]]:
    """The generators of Python, PyTorch and, where it is loaded, NumPy: how to set each, and its state."""
    numpy = sys.modules.get("numpy")
    of_numpy = [] if numpy is None else [(numpy.random.set_state, numpy.random.get_state())]
    return [(random.setstate, random.getstate()), (torch.set_rng_state, torch.get_rng_state()), *of_numpy]


def _numbers(state: Any) -> Any:
    """The state of a generator as numbers that can be compared."""
    if isinstance(state, tuple):
        return [_numbers(part) for part in state]
    return state.tolist() if hasattr(state, "tolist") else state


@contextmanager
def dice_refused() -> Iterator[None]:
    """Refuse a forward that draws random numbers by other means than dropout: they would be drawn once for ever."""
    before = _dice()
    yield
    if any(_numbers(a) != _numbers(b) for (_, a), (_, b) in zip(before, _dice(), strict=False)):
        for restore, state in before:
            restore(state)
        raise unsupported(
            "its forward draws random numbers, which would be drawn once for all steps", f"Use Dropout. {_AUTOGRAD}"
        )


def _contents(value: Any) -> Any:
    """A container's own elements, to be compared by identity; any other value itself."""
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    return list(value) if isinstance(value, (list, tuple, set)) else [value]


class Attributes:
    """The attributes of modules before a trace, which runs their forward."""

    def __init__(self, modules: list[nn.Module]) -> None:
        self.modules = list(dict.fromkeys(modules))
        self.before = [dict(vars(m)) for m in self.modules]
        self.contents = [{k: _contents(v) for k, v in vars(m).items()} for m in self.modules]

    def changed(self) -> Iterator[tuple[nn.Module, str]]:
        """(module, name) of what the trace has set or changed; literals that fx leaves in the first module are none."""
        for module, before in zip(self.modules, self.contents, strict=True):
            for name, value in vars(module).items():
                now, then = _contents(value), before.get(name, [])
                same = len(now) == len(then) and all(a is b for a, b in zip(now, then, strict=True))
                if not (same and name in before) and not name.startswith("_tensor_constant"):
                    yield module, name

    def restore(self) -> None:
        """Give the modules back what they had."""
        for module, attributes in zip(self.modules, self.before, strict=True):
            for name in vars(module).keys() - attributes.keys():
                del module.__dict__[name]
            module.__dict__.update(attributes)
        for module, contents in zip(self.modules, self.contents, strict=True):
            for name, elements in contents.items():
                value, half = vars(module)[name], len(elements) // 2
                if isinstance(value, list):
                    value[:] = elements
                elif isinstance(value, dict):
                    value.clear()
                    value.update(zip(elements[:half], elements[half:], strict=True))
