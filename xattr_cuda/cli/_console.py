"""What the commands share: the output folder, saved JSON, and the progress bar of `training`."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from ..training.errors import UserError
from ..training.log import progress_bar

__all__ = ["make_folder", "progress_bar", "save_json", "show_saved"]


def make_folder(folder: Path) -> Path:
    """Make the output folder before any work is done; UserError where that is impossible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the output folder {folder} cannot be made: {error.strerror or error}") from None
    return folder


def save_json(content: Any, path: Path) -> None:
    """Write `content` as indented JSON, with a newline at the end."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def show_saved(console: Console, folder: Path, names: list[str]) -> None:
    """Say what was written where."""
    console.print(f"Saved in {folder}: {', '.join(names)}", highlight=False, soft_wrap=True)
