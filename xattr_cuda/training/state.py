"""What a run must remember to continue as if it had never stopped, as tensors and plain values."""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .checkpoints import RefusedError
from .distributed import Talk


class Stateful(Protocol):
    """Whatever keeps a state of its own: an optimiser, a schedule, an average of weights."""

    def state_dict(self) -> Any:
        """Its state as tensors and plain values."""

    def load_state_dict(self, state: Any, /) -> Any:
        """Take a state that `state_dict` gave."""


class Randomness:
    """Every generator that a run draws from: PyTorch's, NumPy's, Python's, the loader's and the caller's."""

    def __init__(self, candidates: Iterable[Any]) -> None:
        found = [candidate for candidate in candidates if isinstance(candidate, torch.Generator)]
        self.own = list({id(generator): generator for generator in found}.values())

    def state(self) -> dict[str, Any]:
        """The states of all of them."""
        name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 - what others draw from
        state = {
            "torch": torch.get_rng_state(),
            "numpy": (name, torch.from_numpy(np.asarray(keys, np.int64)), *rest),
            "python": random.getstate(),
            "own": [generator.get_state() for generator in self.own],
        }
        return {**state, "cuda": torch.cuda.get_rng_state_all()} if torch.cuda.is_initialized() else state

    def restore(self, state: Mapping[str, Any]) -> None:
        """Draw on from there, as `state` has it."""
        torch.set_rng_state(state["torch"])
        name, keys, *rest = state["numpy"]
        np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
        random.setstate(state["python"])
        for generator, own in zip(self.own, state["own"], strict=True):
            generator.set_state(own)
        for index, one in enumerate(state.get("cuda", [])[: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(one, index)


def generators_of(loader: Any) -> Iterator[Any]:
    """What a DataLoader and its samplers, those inside of others too, call their generator."""
    if loader is not None:
        yield getattr(loader, "generator", None)
        yield from generators_of(getattr(loader, "sampler", None))
        yield from generators_of(getattr(loader, "batch_sampler", None))


class Trained:
    """The model, its optimiser and all else with a state, as one.

    model: also in DDP, compiled, or sharded by FSDP2, which is gathered into the state of the whole model on the first
    process: its memory must hold model and optimiser once.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, others: Mapping[str, Stateful]) -> None:
        if isinstance(model, DistributedDataParallel):
            model = model.module
        self.model: nn.Module = getattr(model, "_orig_mod", model)
        self.optimizer = optimizer
        self.others = others
        self.sharded = any(hasattr(parameter, "device_mesh") for parameter in self.model.parameters())

    def state(self) -> dict[str, Any]:
        """Model, optimiser and others; of a sharded model all processes must ask, and only the first is answered."""
        others = {name: other.state_dict() for name, other in self.others.items()}
        if self.sharded:
            from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

            options = StateDictOptions(full_state_dict=True, cpu_offload=True)
            model, optimizer = get_state_dict(self.model, self.optimizer, options=options)
        else:
            model, optimizer = self.model.state_dict(), self.optimizer.state_dict()
        return {"model": model, "optimizer": optimizer, "others": others}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take what `state` gave, on every process."""
        if self.sharded:
            from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

            set_state_dict(
                self.model,
                self.optimizer,
                model_state_dict=state["model"],
                optim_state_dict=state["optimizer"],
                options=StateDictOptions(full_state_dict=True),
            )
        else:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        for name, other in self.others.items():
            other.load_state_dict(state["others"][name])

    def accept(self, state: Mapping[str, Any]) -> None:
        """RefusedError if `state` is another model's, by the names and shapes of its tensors, or has other parts."""
        mine, theirs = shapes(self.model.state_dict()), shapes(state["model"])
        different = sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
        if different:
            name = different[0]
            raise RefusedError(
                f"it is of another model: {name} has shape {theirs.get(name, 'none')} there, {mine.get(name, 'none')} "
                f"here{f', and {len(different) - 1} more differ' if different[1:] else ''}"
            )
        there, groups = _groups(state["optimizer"]), _groups(self.optimizer.state_dict())
        if groups != there:
            raise RefusedError(f"its optimiser has groups of {there} parameters; wanted {groups}")
        if state["others"].keys() != self.others.keys():
            raise RefusedError(f"it holds {_listed(state['others'])} beside the model; wanted {_listed(self.others)}")


def shapes(state: Mapping[str, Any]) -> dict[str, list[int]]:
    """Shapes of a state's tensors, by name."""
    return {name: list(value.shape) for name, value in state.items() if isinstance(value, Tensor)}


def _groups(optimizer: Mapping[str, Any]) -> list[int]:
    return [len(group["params"]) for group in optimizer["param_groups"]]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"


def differing(there: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    """The first setting in which two runs or processes differ, in words, or None. Tuples and lists are one."""
    for name in sorted(there.keys() | here.keys()):
        if _plain(there.get(name)) != _plain(here.get(name)):
            return f"{name} is {there.get(name)!r} there, {here.get(name)!r} here"
    return None


def _plain(value: Any) -> Any:
    return [_plain(part) for part in value] if isinstance(value, Sequence) and not isinstance(value, str) else value


class Means:
    """Running means of named scalars, kept on their device so that nothing waits for a GPU."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.count = 0

    def add(self, parts: Mapping[str, Tensor]) -> None:
        """One more of each."""
        for name, value in parts.items():
            value = value.detach().double()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.count += 1

    def take(self, talk: Talk) -> dict[str, float]:
        """The means over all processes, by name; it then starts anew."""
        *sums, count = talk.total([*map(float, self.sums.values()), float(self.count)])
        means = {name: total / count for name, total in zip(self.sums, sums, strict=True)}
        self.sums, self.count = {}, 0
        return means

    def state(self) -> dict[str, Any]:
        """What to remember, on the CPU."""
        return {"sums": {name: total.cpu() for name, total in self.sums.items()}, "count": self.count}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.sums, self.count = dict(state["sums"]), state["count"]
