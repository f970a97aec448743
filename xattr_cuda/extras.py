"""Optional libraries, imported when they are needed."""

import importlib
from typing import Any


class MissingPackageError(ImportError):
    """An optional library that is needed now is not installed; the message holds the command that installs it."""


def load(module: str, *, needs: str | None = None, extra: str = "demo") -> Any:
    """Import `module` (dotted name) and return it; MissingPackageError where what it needs is not installed.

    needs: the library whose absence is reported, None for the module's own; what else fails to be imported is raised
    as it is. extra: the extra of the package that brings it.
    """
    root = needs or module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != root:
            raise
        message = f"this needs {root}, which is not installed: pip install xattr_cuda[{extra}]"
        raise MissingPackageError(message, name=root) from None
