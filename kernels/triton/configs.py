"""Block shapes, warps and pipeline stages of every kernel, by operator and architecture: plain data and its look-up.

The compile report goes through the same table, so a configuration that spills or asks for too much shared memory is
found without a GPU.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

ARCHITECTURES = ("80", "86", "90", "100", "gfx942")
"""Compute capabilities that have entries of their own; 86 stands for all whose blocks have about 100 KiB of shared
memory (8.6, 8.9, 12.x)."""


@dataclass(frozen=True)
class Config:
    """name: what the report calls it. blocks: values of the kernel's block constants by name."""

    name: str
    blocks: Mapping[str, int] = field(hash=False)
    num_warps: int
    num_stages: int = 1

    def __str__(self) -> str:
        return f"{self.name}, {self.num_warps} warps, {self.num_stages} stages"


def _tiles(tall: int, wide: int, step: int, num_warps: int, num_stages: int) -> Config:
    """Tiles [tall, wide] of a product, whose factors are read `step` elements deep."""
    blocks = {"TALL": tall, "WIDE": wide, "STEP": step, "GROUP": 8}
    return Config(f"{tall}x{wide}x{step}", blocks, num_warps, num_stages)


def _row_tiles(rows: int, block: int, step: int, num_warps: int, num_stages: int) -> Config:
    """Tiles of rows that go through all layers of a perceptron, `block` columns of a layer at a time."""
    return Config(f"{rows}x{block}x{step}", {"ROWS": rows, "BLOCK": block, "STEP": step}, num_warps, num_stages)


_TABLE: dict[str, dict[str, tuple[Config, ...]]] = {
    # operator: architecture, or "" for all that are not named: its configurations, which the launcher chooses from
    # Of values of four and of two bytes, so that a thread moves 16 bytes at once of either; and of rows of odd lengths.
    "elementwise": {
        "": (Config("w64", {"WORDS": 64}, 4), Config("w128", {"WORDS": 128}, 4), Config("w32", {"WORDS": 32}, 4))
    },
    "pool": {
        "": (Config("e512", {"ELEMENTS": 512}, 4), Config("e1024", {"ELEMENTS": 1024}, 4)),
        "gfx942": (Config("e512-2", {"ELEMENTS": 512}, 2), Config("e1024-2", {"ELEMENTS": 1024}, 2)),  # warps of 64
    },
    "attribution": {  # of the products, and of what adds up their sums
        "": (
            Config("e1024", {"ELEMENTS": 1024, "COLUMNS": 256, "STEPS": 16}, 4),
            Config("sums", {"PARTS": 16, "WIDTH": 128}, 4),
        ),
        "gfx942": (
            Config("e1024-2", {"ELEMENTS": 1024, "COLUMNS": 256, "STEPS": 16}, 2),
            Config("sums", {"PARTS": 16, "WIDTH": 128}, 4),
        ),
    },
    "gini": {"": (Config("b1024", {"BLOCK": 1024}, 8),)},
    # Of exact fp32; of fp32 multiplied as TF32, in large and in small tiles; of two-byte values likewise.
    "product": {
        "": (
            _tiles(64, 64, 16, 8, 2),
            _tiles(128, 128, 32, 8, 3),
            _tiles(64, 64, 32, 4, 3),
            _tiles(128, 128, 32, 8, 4),
            _tiles(64, 64, 64, 4, 3),
        ),
        "86": (
            _tiles(64, 64, 16, 8, 2),
            _tiles(64, 64, 32, 4, 3),
            _tiles(64, 64, 32, 4, 3),
            _tiles(128, 128, 32, 8, 3),
            _tiles(64, 64, 64, 4, 3),
        ),
        "90": (
            _tiles(64, 64, 16, 8, 3),
            _tiles(128, 128, 32, 8, 4),
            _tiles(64, 64, 32, 4, 4),
            _tiles(128, 128, 64, 8, 4),
            _tiles(64, 64, 64, 4, 4),
        ),
        "gfx942": (
            _tiles(64, 64, 16, 8, 1),
            _tiles(64, 64, 32, 4, 2),
            _tiles(64, 64, 32, 4, 2),
            _tiles(128, 128, 32, 8, 2),
            _tiles(64, 64, 64, 4, 2),
        ),
    },
    # By how values are multiplied: exact fp32, fp32 as TF32, two-byte values.
    "weight_gradients-exact": {
        "": (_tiles(64, 64, 16, 8, 2),),
        "90": (_tiles(64, 64, 16, 4, 2),),
        "100": (_tiles(64, 64, 16, 4, 2),),
        "gfx942": (_tiles(64, 64, 16, 8, 1),),
    },
    "weight_gradients-tf32": {"": (_tiles(64, 64, 32, 4, 3),), "gfx942": (_tiles(64, 64, 32, 4, 2),)},
    "weight_gradients-half": {"": (_tiles(64, 64, 64, 4, 3),), "gfx942": (_tiles(64, 64, 64, 4, 2),)},
    # Likewise, the most rows to a program first.
    "perceptron-exact": {
        "": (_row_tiles(32, 64, 16, 4, 2), _row_tiles(16, 64, 32, 4, 2)),
        "100": (_row_tiles(16, 64, 32, 4, 3),),
        "gfx942": (_row_tiles(64, 64, 16, 8, 2), _row_tiles(16, 64, 32, 4, 2)),
    },
    "perceptron-tf32": {
        "": (_row_tiles(32, 32, 32, 4, 2), _row_tiles(16, 64, 32, 4, 2)),
        "90": (_row_tiles(32, 64, 32, 4, 2), _row_tiles(16, 64, 32, 4, 2)),
        "100": (_row_tiles(32, 64, 32, 4, 2), _row_tiles(16, 64, 32, 4, 2)),
        "gfx942": (_row_tiles(64, 64, 16, 8, 2),),
    },
    "perceptron-half": {
        "": (_row_tiles(64, 64, 64, 8, 2), _row_tiles(16, 64, 64, 4, 2)),
        "90": (_row_tiles(64, 128, 64, 8, 2), _row_tiles(32, 128, 64, 8, 2), _row_tiles(16, 128, 64, 4, 2)),
        "gfx942": (_row_tiles(64, 64, 32, 8, 1),),
    },
}


def configs(operator: str, architecture: str) -> tuple[Config, ...]:
    """The configurations of an operator on an architecture of ARCHITECTURES."""
    entries = _TABLE[operator]
    return entries.get(architecture, entries.get("", ()))


_ROWS: dict[str, tuple[str, slice]] = {
    # family: the operator of the table, and which of its configurations are the family's
    "elementwise": ("elementwise", slice(None)),
    "pool": ("pool", slice(None)),
    "attribution": ("attribution", slice(1)),
    "gini": ("gini", slice(None)),
    "exact product": ("product", slice(1)),  # of fp32, without tensor cores
    "product": ("product", slice(1, None)),
    **{
        f"{operator}-{kind}": (f"{operator}-{kind}", slice(None))
        for operator in ("perceptron", "weight_gradients")
        for kind in ("exact", "tf32", "half")
    },
}
_NEIGHBOURS: dict[str, tuple[Config, ...]] = {
    # family: what else may be the fastest on some device
    "elementwise": tuple(
        Config(f"w{words}", {"WORDS": words}, warps)
        for words, warps in ((16, 1), (32, 2), (64, 2), (64, 8), (128, 8), (256, 8))
    ),
    "pool": tuple(
        Config(f"e{elements}-{warps}", {"ELEMENTS": elements}, warps)
        for elements, warps in ((256, 2), (512, 2), (1024, 2), (1024, 8), (2048, 8))
    ),
    "attribution": tuple(
        Config(f"e{elements}-{warps}", {"ELEMENTS": elements, "COLUMNS": 256, "STEPS": steps}, warps)
        for elements, steps, warps in ((1024, 8, 4), (1024, 32, 4), (2048, 8, 8), (2048, 16, 8))
    ),
    "gini": tuple(Config(f"b{block}", {"BLOCK": block}, warps) for block, warps in ((512, 4), (1024, 4), (2048, 8))),
    "exact product": (
        _tiles(32, 64, 16, 4, 2),
        _tiles(64, 64, 16, 4, 2),
        _tiles(64, 64, 16, 8, 3),
        _tiles(64, 128, 16, 8, 2),
        _tiles(128, 64, 16, 8, 2),
    ),
    "product": (
        _tiles(32, 64, 64, 4, 4),
        _tiles(64, 32, 64, 4, 4),
        _tiles(64, 64, 32, 4, 5),
        _tiles(64, 128, 32, 4, 4),
        _tiles(128, 64, 32, 4, 4),
        _tiles(64, 128, 64, 4, 3),
        _tiles(128, 64, 64, 4, 3),
        _tiles(128, 128, 64, 8, 3),
        _tiles(128, 256, 64, 8, 3),
    ),
    "perceptron-exact": (
        _row_tiles(64, 64, 16, 8, 2),
        _row_tiles(32, 32, 16, 4, 2),
        _row_tiles(64, 32, 16, 8, 2),
        _row_tiles(16, 64, 16, 4, 2),
    ),
    "perceptron-tf32": (
        _row_tiles(64, 64, 32, 4, 2),
        _row_tiles(64, 128, 32, 8, 2),
        _row_tiles(32, 64, 32, 4, 3),
    ),
    "perceptron-half": (
        _row_tiles(16, 64, 64, 2, 3),
        _row_tiles(32, 64, 64, 4, 3),
        _row_tiles(32, 128, 64, 8, 3),
        _row_tiles(64, 64, 64, 8, 3),
        _row_tiles(64, 256, 32, 8, 2),
        _row_tiles(128, 64, 64, 8, 2),
    ),
    "weight_gradients-exact": (_tiles(32, 64, 16, 4, 2), _tiles(64, 128, 16, 8, 2)),
    "weight_gradients-tf32": (_tiles(32, 64, 32, 4, 3), _tiles(64, 128, 32, 4, 3), _tiles(128, 128, 32, 8, 3)),
    "weight_gradients-half": (
        _tiles(32, 64, 64, 4, 3),
        _tiles(64, 64, 64, 4, 4),
        _tiles(64, 128, 64, 4, 3),
        _tiles(128, 128, 64, 8, 3),
    ),
}


@functools.cache
def candidates(family: str) -> tuple[Config, ...]:
    """What may be tried for a family of kernels: the table's entries for all architectures, and some beside them.

    Not all of them run on every device, and not all are in the compile report.
    """
    operator, which = _ROWS[family]
    entries = [config for row in _TABLE[operator].values() for config in row[which]]
    found: list[Config] = []
    for config in (*entries, *_NEIGHBOURS[family]):
        if config not in found:
            found.append(config)
    return tuple(found)


def by_config(choose: Callable[[str], Config]) -> list[tuple[Config, tuple[str, ...]]]:
    """What `choose` picks for the architectures: every configuration, with those that it is picked for."""
    found: dict[Config, list[str]] = {}
    for arch in ARCHITECTURES:
        found.setdefault(choose(arch), []).append(arch)
    return [(config, tuple(archs)) for config, archs in found.items()]


def architecture(device: torch.device) -> str:
    """The entry of ARCHITECTURES that serves a device; a CPU stands for the target of the active Triton driver."""
    if device.type == "cuda":
        return _of_gpu(device.index if device.index is not None else torch.cuda.current_device())
    from triton.runtime.driver import driver

    # The property `active` would look for a GPU where there is no driver yet.
    return _nearest(int(driver._active.get_current_target().arch))


@functools.cache
def _of_gpu(index: int) -> str:
    if torch.version.hip:
        return "gfx942"
    major, minor = torch.cuda.get_device_capability(index)
    return _nearest(10 * major + minor)


def _nearest(capability: int) -> str:
    """The newest entry that a compute capability, such as 90, is not older than and has the shared memory for."""
    if capability in (86, 89) or capability >= 120:
        return "86"
    return "100" if capability >= 100 else "90" if capability >= 90 else "80"
