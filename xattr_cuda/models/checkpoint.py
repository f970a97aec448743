"""Checkpoints: from a file that a training script saved to the parameters of a model."""

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, overload

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)

_UNDER = ("state_dict", "model")  # where training scripts put the state dict
_WRAPPERS = ("module", "_orig_mod")  # what DataParallel, DistributedDataParallel and torch.compile put into names
_SHOWN = 4  # keys that a message lists


@overload
def load_checkpoint(path: str | os.PathLike[str], model: None = None) -> dict[str, Tensor]: ...
@overload
def load_checkpoint(path: str | os.PathLike[str], model: Model) -> Model: ...
def load_checkpoint(path: str | os.PathLike[str], model: nn.Module | None = None) -> dict[str, Tensor] | nn.Module:
    """Read a checkpoint; return its state dict on the CPU or, with a model, load it into that and return the model.

    path: a file written by torch.save with a state dict, or with a dictionary that holds one under `state_dict` or
    `model`; whatever else it holds is ignored. Only tensors and plain containers are unpickled, no code is run. The
    parts `module.` and `_orig_mod.` of a name, which wrappers add anywhere in it, are dropped unless the model has a
    parameter of the full name.

    Names and shapes must be the model's exactly; dtype and device stay those of the model. Raises FileNotFoundError
    where there is no file, and ValueError, with the model untouched, where it cannot be read or does not fit.
    """
    label = f"checkpoint {os.fspath(path)!r}"
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{label}: there is no such file")
    own = {} if model is None else model.state_dict()
    state = _unwrapped(_state_dict(_read(path, label), label), own, label)
    if model is None:
        return state
    _check_fit(state, own, label, type(model).__name__)
    model.load_state_dict(state)
    return model


def _read(path: str | os.PathLike[str], label: str) -> Any:
    """What a file holds, of tensors and plain containers only."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:  # names the path itself
        raise
    except Exception as error:  # torch.load raises whatever its many readers do on a damaged file
        if unsafe := re.search(r"GLOBAL (\S+) was not an allowed", str(error)):
            raise ValueError(
                f"{label} holds Python objects besides tensors ({unsafe[1]}), and to load those may run code. If you "
                "trust the file, read it with torch.load(path, weights_only=False) and save its state dict alone"
            ) from error
        raise ValueError(
            f"{label} cannot be read ({type(error).__name__}): it is damaged or was not written by torch.save. "
            "Fetch or save it again"
        ) from error


def _is_state_dict(found: Any) -> bool:
    return isinstance(found, Mapping) and all(isinstance(k, str) and isinstance(t, Tensor) for k, t in found.items())


def _state_dict(found: Any, label: str) -> Mapping[str, Tensor]:
    """The state dict in what a file holds."""
    candidates = [found, *(found.get(name) for name in _UNDER)] if isinstance(found, Mapping) else []
    for candidate in candidates:
        if candidate and _is_state_dict(candidate):
            return candidate
    held = f"an object of type {type(found).__name__}"
    if isinstance(found, Mapping):
        held = f"a dictionary of {_listed(map(str, found))}" if found else "an empty dictionary"
    raise ValueError(
        f"{label} holds {held}; wanted a state dict of tensors, bare or under "
        + " or ".join(f"`{name}`" for name in _UNDER)
    )


def _unwrapped(state: Mapping[str, Tensor], own: Mapping[str, Tensor], label: str) -> dict[str, Tensor]:
    """The state dict with the names that the parameters have without wrappers."""
    names = [k if k in own else ".".join(p for p in k.split(".") if p not in _WRAPPERS) for k in state]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(
            f"{label} holds more than one tensor for {_listed(twice)}, with and without "
            f"{' or '.join(f'`{name}.`' for name in _WRAPPERS)} in the name; save one state dict alone"
        )
    return dict(zip(names, state.values(), strict=True))


def _check_fit(state: Mapping[str, Tensor], own: Mapping[str, Tensor], label: str, kind: str) -> None:
    """Raise ValueError unless names and shapes are the model's."""
    shapes = [
        f"{name} ({list(state[name].shape)}, wanted {list(t.shape)})"
        for name, t in own.items()
        if name in state and state[name].shape != t.shape
    ]
    problems = {
        "is missing": [name for name in own if name not in state],
        "has unexpected": [name for name in state if name not in own],
        "has other shapes for": shapes,
    }
    if any(problems.values()):
        what = ", ".join(f"{problem} {_listed(names)}" for problem, names in problems.items() if names)
        raise ValueError(
            f"{label} does not fit the {kind}: it {what}. Nothing was loaded; build the model "
            "with the architecture and the options that the checkpoint was trained with"
        )


def _listed(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    shown = list(names)
    more = len(shown) - _SHOWN
    return ", ".join(shown[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
