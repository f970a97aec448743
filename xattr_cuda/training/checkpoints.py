"""Checkpoints of a run in a folder: written whole or not at all, proved when read, the last few kept.

A checkpoint is one file of `torch.save` that `torch.load(path, weights_only=True)` reads. It ends in the SHA-256 of all
bytes before, as the comment that a zip archive, which `torch.save` writes, may have. The sums of the archive's own
would not do: they leave its headers out.
"""

import hashlib
import os
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

from .errors import UserError

FORMAT, VERSION = "xattr_cuda checkpoint", 1
NAME = re.compile(r"step-(\d{10})\.pt")
MARK, SEAL_BYTES, CHUNK = b"sha256:", 7 + 64, 1 << 22


class RefusedError(Exception):
    """Why a file cannot be used as a checkpoint."""


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when the block ends: on disk and whole, or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # the new name must be on disk too
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, its tensors on the CPU. RefusedError for a file that is damaged or something else.

    Pickled code never runs: only tensors and plain values are read.
    """
    try:
        with path.open("rb") as file:
            _check_seal(file)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except RefusedError:
        raise
    except Exception as error:  # what the file system, pickle and torch raise is without number
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise RefusedError(f"it does not read as tensors and plain values ({reason})") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise RefusedError("it is a file of torch.save, but no checkpoint of a run")
    if content.get("version") != VERSION:
        raise RefusedError(f"its format is version {content.get('version')}; this program reads version {VERSION}")
    return content


def _seal(file: BinaryIO) -> None:
    """Append the checksum to a zip archive without a comment, as its comment: its length ends the archive."""
    file.seek(-2, os.SEEK_END)
    file.write(struct.pack("<H", SEAL_BYTES))
    file.write(MARK + _digest(file, file.tell()))


def _check_seal(file: BinaryIO) -> None:
    size = max(0, file.seek(0, os.SEEK_END) - SEAL_BYTES)
    digest = _digest(file, size)
    end = file.read()
    if not end.startswith(MARK) or len(end) != SEAL_BYTES:
        raise RefusedError("it is cut short, or no checkpoint of a run: it does not end in a checksum")
    if end != MARK + digest:
        raise RefusedError("it is damaged: its checksum is wrong")


def _digest(file: BinaryIO, size: int) -> bytes:
    """SHA-256 of the first `size` bytes, as digits; leaves the file there."""
    sha = hashlib.sha256()
    file.seek(0)
    while left := size - file.tell():
        sha.update(file.read(min(left, CHUNK)))
    return sha.hexdigest().encode()


class Folder:
    """The checkpoints of one run: `step-0000000100.pt` and so on in `path`, the last `keep` of them.

    Of several processes only the first one writes and finds.
    """

    def __init__(self, path: str | Path, keep: int = 3) -> None:
        if keep < 1:
            raise ValueError(f"keep is {keep}; wanted at least 1 checkpoint to keep")
        self.path = Path(path)
        self.keep = keep

    def checkpoints(self) -> list[Path]:
        """Those in the folder, the newest first."""
        if not self.path.is_dir():
            return []
        return sorted((path for path in self.path.iterdir() if NAME.fullmatch(path.name)), reverse=True)

    def save(self, content: dict[str, Any], step: int) -> Path:
        """Write the checkpoint of a step, then delete what is older than the last `keep`. Returns its path.

        Raises TypeError if `content` holds what `torch.load` would not read without running code.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        path = self.path / f"step-{step:010d}.pt"
        with replacing(path) as file:
            torch.save({"format": FORMAT, "version": VERSION, **content}, file)
            _seal(file)
            file.flush()
            if unsafe := torch.serialization.get_unsafe_globals_in_checkpoint(file.name):
                raise TypeError(f"a checkpoint holds tensors and plain values; given {', '.join(sorted(unsafe))}")
        # Newer ones, left by a run that this one does not continue, count neither as kept nor as old.
        for old in [other for other in self.checkpoints() if other.name <= path.name][self.keep :]:
            old.unlink(missing_ok=True)
        return path

    def find(self, accept: Callable[[dict[str, Any]], None], tell: Callable[[str], object]) -> Path | None:
        """The newest checkpoint that reads and that `accept` does not refuse by a RefusedError; None if there are none.

        tell: told of every one that is refused, with the reason. Raises UserError if all are: starting anew in its
        place is for the user to decide.
        """
        refused: list[str] = []
        for path in self.checkpoints():
            reason = _refusal(path, accept)
            if reason is None:
                for line in [*refused, *([f"continuing from {path}"] if refused else [])]:
                    tell(line)
                return path
            refused.append(f"{path} is refused: {reason}")
        if refused:
            raise UserError(f"no checkpoint can be continued: {'; '.join(refused)}")
        return None

    def tidy(self) -> None:
        """Remove what a process left that was killed while it wrote."""
        for path in self.path.glob(".step-*.tmp"):
            path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove all checkpoints."""
        self.tidy()
        for path in self.checkpoints():
            path.unlink(missing_ok=True)


def _refusal(path: Path, accept: Callable[[dict[str, Any]], None]) -> str | None:
    try:
        accept(read(path))
    except RefusedError as error:
        return str(error)
    return None
