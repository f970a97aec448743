"""What the code of a forward may read beside its module: globals, closures, class attributes."""

from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any
from weakref import ref

from torch import nn

_LIBRARIES = ("torch", "numpy", "xattr_cuda", "builtins")


def _names(code: CodeType) -> set[str]:
    """All names in a function's code, strings (as `getattr` takes) and those of functions within it included."""
    strings = {c for c in code.co_consts if isinstance(c, str)}
    return strings.union(code.co_names, *(_names(c) for c in code.co_consts if isinstance(c, CodeType)))


def _functions(kind: type[nn.Module]) -> list[FunctionType]:
    """The functions of a class that is no library's, and those that they call by a global name."""
    own = (c for c in kind.__mro__ if c.__module__.split(".")[0] not in _LIBRARIES)
    pending = [f for c in own for f in vars(c).values() if isinstance(f, FunctionType)]
    found: list[FunctionType] = []
    while pending:
        function = pending.pop()
        while isinstance(wrapped := getattr(function, "__wrapped__", None), FunctionType):
            found.append(function)
            function = wrapped
        if function in found or (function.__module__ or "").split(".")[0] in _LIBRARIES:
            continue
        found.append(function)
        read = [function.__globals__.get(name) for name in _names(function.__code__)]
        read += [cell.cell_contents for cell in function.__closure__ or () if cell is not None and _filled(cell)]
        pending += [f for f in read if isinstance(f, FunctionType)]
    return found


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


class Reads:
    """What the methods of a class may read, found once; `values` are as they are now."""

    def __init__(self, kind: type[nn.Module]) -> None:
        functions = _functions(kind)
        self.names = frozenset().union(*(_names(f.__code__) for f in functions)) - vars(nn.Module()).keys()
        self.globals = [
            (f.__globals__, name)
            for f in functions
            for name in sorted(_names(f.__code__))
            if not isinstance(f.__globals__.get(name, nn), (ModuleType, type))
        ]
        cells = (cell for f in functions for cell in f.__closure__ or () if _filled(cell))
        self.cells = [cell for cell in cells if not isinstance(cell.cell_contents, type)]
        self.kind, self.attributes = ref(kind), [name for name in sorted(self.names) if _is_attribute(kind, name)]

    def values(self) -> Iterator[Any]:
        """What they read now."""
        for scope, name in self.globals:
            yield scope.get(name)
        for cell in self.cells:
            yield cell.cell_contents
        for name in self.attributes:
            yield getattr(self.kind(), name, None)


def _is_attribute(kind: type[nn.Module], name: str) -> bool:
    return any(name in vars(c) for c in kind.__mro__ if c.__module__.split(".")[0] not in _LIBRARIES)
