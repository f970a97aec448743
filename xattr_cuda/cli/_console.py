"""What the commands share: the output folder, the progress bar and saved JSON."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ..training.errors import UserError


def progress_bar(console: Console) -> Progress:
    """A progress bar in words, parts done and time; it vanishes when the work is done."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )


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
