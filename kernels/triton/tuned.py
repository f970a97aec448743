"""Configurations that were measured on a device: their file, and what a launch takes, one of these or the table's.

`xattr-cuda bench --tune` writes the file, one for a device and a release of Triton. It is read when a kernel is first
launched on that device; what is not of this device, release and version is refused in one warning. Shapes are known by
their sizes rounded up to powers of two.
"""

import functools
import json
import os
import re
import tempfile
import warnings
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton

from .configs import Config, candidates

FORMAT = 1
"""Of the file; to be raised where a key or a kernel's block constant gets another meaning."""


class Request(NamedTuple):
    """What a launcher asks for. family: of kernels, as in `configs.candidates`; dtype, what and shape in words."""

    family: str
    operator: str
    dtype: str
    what: str
    shape: str

    @property
    def key(self) -> str:
        """Its name in the file, within its family."""
        return " ".join(part for part in self[1:] if part)


@dataclass
class _Trial:
    """What launches get instead of the file's choice, and what they have asked for, with the table's choices."""

    request: Request | None
    config: Config | None
    asked: dict[Request, Config] = field(default_factory=dict)

    def answer(self, request: Request, table: Config) -> Config:
        self.asked[request] = table
        return self.config if self.config is not None and request == self.request else table


_trial: _Trial | None = None


def chosen(
    family: str,
    operator: str,
    device: torch.device,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    table: Config,
    *what: Hashable,
) -> Config:
    """The configuration of a launch: what was measured to be the fastest for such shapes on this device, else `table`.

    what: settings beside the shape on which the choice depends, words or tuples of numbers.
    """
    if _trial is not None:
        return _trial.answer(_request(family, operator, dtype, shape, what), table)
    return _measured(family, operator, device, dtype, shape, what) or table


@contextmanager
def trying(request: Request | None = None, config: Config | None = None) -> Iterator[dict[Request, Config]]:
    """Within it launches that make this request take `config`, all others the table's choice, whatever the file says.

    Yields all that was asked for, with the table's choices.
    """
    global _trial
    before, _trial = _trial, _Trial(request, config)
    try:
        yield _trial.asked
    finally:
        _trial = before


def _request(
    family: str, operator: str, dtype: torch.dtype, shape: tuple[int, ...], what: tuple[Hashable, ...]
) -> Request:
    words = ("x".join(map(str, one)) if isinstance(one, tuple) else str(one) for one in what)
    return Request(
        family,
        operator.removesuffix("_kernel"),
        str(dtype).removeprefix("torch."),
        " ".join(word for word in words if word),
        "x".join(str(triton.next_power_of_2(n)) for n in shape),
    )


@functools.lru_cache(4096)
def _measured(
    family: str,
    operator: str,
    device: torch.device,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    what: tuple[Hashable, ...],
) -> Config | None:
    choices = _of(device).choices
    return choices.get(_request(family, operator, dtype, shape, what)) if choices else None


# ---- the file ----


@dataclass(frozen=True)
class Tuned:
    """The file of a device. choices: those in force; refused: why it is not used, where there is one that is not."""

    path: Path
    choices: Mapping[Request, Config]
    refused: str = ""


def name_of(device: torch.device) -> str:
    """The device in words; a CPU stands for the target of the active Triton driver."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    from triton.runtime.driver import driver

    target = driver._active.get_current_target()
    return f"{target.backend} {target.arch}"


def path_of(device: torch.device) -> Path:
    """Where the file of a device lies: in the folder XATTR_CUDA_CACHE, or where the system keeps a user's caches."""
    folder = os.environ.get("XATTR_CUDA_CACHE")
    if not folder:
        folder = str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "xattr_cuda"))
    words = re.sub(r"[^A-Za-z0-9.]+", "-", f"{name_of(device)}-{triton.__version__}")
    return Path(folder, f"tune-{words}.json")


def of_device(device: torch.device) -> Tuned:
    """What is in force on a device, from its file at the first call."""
    return _of(device)


@functools.cache
def _of(device: torch.device) -> Tuned:
    path = path_of(device)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Tuned(path, _parsed(content, name_of(device)))
    except FileNotFoundError:
        return Tuned(path, {})
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
    warnings.warn(
        f"xattr_cuda: {path} is not used, and kernels take the configurations of the package: {reason}. "
        "Run `xattr-cuda bench --tune` to write it anew, or delete it.",
        stacklevel=2,
    )
    return Tuned(path, {}, reason)


def _header(device: str) -> dict[str, Any]:
    return {"format": FORMAT, "device": device, "triton": triton.__version__}


def _parsed(content: Any, device: str) -> dict[Request, Config]:
    """The choices of a file's content; ValueError, with the reason, where it is not one of this device and version."""
    if not isinstance(content, dict):
        raise ValueError("it holds no table")
    for name, wanted in _header(device).items():
        if content.get(name) != wanted:
            raise ValueError(f"its {name} is {content.get(name)!r}, not {wanted!r}")
    found = {}
    try:
        for entry in content["choices"]:
            request, config = Request(*entry["request"]), Config(**entry["config"])
            known = [one for one in candidates(request.family) if one == config]
            if not known:
                raise ValueError(f"{config} is not a configuration of this version")
            found[request] = known[0]
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"it has a damaged entry ({type(error).__name__}: {error})") from None
    return found


def save(device: torch.device, choices: Mapping[Request, Config]) -> Path:
    """Write the file of a device whole, at once, and put it in force."""
    path = path_of(device)
    entries = [{"request": list(request), "config": asdict(config)} for request, config in sorted(choices.items())]
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, suffix=".tmp", delete=False) as file:
        json.dump({**_header(name_of(device)), "choices": entries}, file, indent=1)
    os.replace(file.name, path)
    forget()
    return path


def forget() -> None:
    """Have files read again when a kernel is next launched."""
    _of.cache_clear()
    _measured.cache_clear()
