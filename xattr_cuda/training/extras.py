"""Optional libraries, imported when they are needed."""

import importlib
from typing import Any

from .errors import UserError


def load(module: str) -> Any:
    """Import `module` (dotted name) and return it; UserError with the command to run where it is not installed."""
    root = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != root:
            raise
        raise UserError(f"this needs {root}, which is not installed: pip install xattr_cuda[demo]") from None
