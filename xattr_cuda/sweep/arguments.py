"""Arguments of traced calls, and what models return: nested containers of leaves."""

from collections.abc import Callable, Sequence
from typing import Any


def map_leaves(function: Callable[[Any], Any], args: Any) -> Any:
    """args with function applied to what is neither a tuple, a list, a dictionary nor a slice, as plain containers."""
    if isinstance(args, tuple):
        return tuple([map_leaves(function, a) for a in args])
    if isinstance(args, list):
        return [map_leaves(function, a) for a in args]
    if isinstance(args, dict):
        return {k: map_leaves(function, a) for k, a in args.items()}
    if isinstance(args, slice):
        return slice(*[map_leaves(function, a) for a in (args.start, args.stop, args.step)])
    return function(args)


def leaves(args: Any) -> list[Any]:
    """The leaves of args, in order."""
    found: list[Any] = []
    map_leaves(found.append, args)
    return found


def fill(structure: Any, values: Sequence[Any]) -> Any:
    """The structure, whose leaves are positions in `values`, with the values in their places."""
    return map_leaves(lambda place: values[place], structure)


def flatten_like(given: Any, structure: Any) -> list[Any]:
    """The reverse of `fill`: the values in order of their positions. None may stand for any part of the structure."""
    if given is None:
        return [None for _ in leaves(structure)]
    if isinstance(structure, dict):
        same = isinstance(given, dict) and set(given) == set(structure)
        pairs = [(given[k], structure[k]) for k in structure] if same else []
    elif isinstance(structure, (tuple, list)):
        same = isinstance(given, (tuple, list)) and len(given) == len(structure)
        pairs = list(zip(given, structure, strict=True)) if same else []
    else:
        return [given]
    if not same:
        raise ValueError(
            f"`cotangent` is a {type(given).__name__}; wanted a {type(structure).__name__} of {len(structure)}, "
            "as the model returns"
        )
    return [value for part, of in pairs for value in flatten_like(part, of)]
