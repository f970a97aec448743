"""The networks of a comparison, kept in a folder: the outcomes of those that are trained, checkpoints of the others."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .checkpoints import Folder, replacing
from .distributed import Processes, Talk
from .errors import UserError
from .log import say
from .state import differing

MANIFEST = "comparison.json"


class Runs:
    """What was trained before is skipped, what was interrupted goes on, unless `resume` is False: then all is removed.

    identity: plain values that every outcome depends on, whatever its name; to resume a comparison with others is a
    UserError. Of several processes all must make this together.
    """

    def __init__(
        self, folder: Path, identity: Mapping[str, Any], *, resume: bool, processes: Processes, talk: Talk
    ) -> None:
        self.folder, self.resume = folder, resume
        manifest = folder / MANIFEST
        there = self._read(manifest)
        if resume and there is not None and (difference := differing(there, identity)):
            raise UserError(f"{folder} is of another comparison: {difference}; leave out --resume to start anew")
        talk.all(None)  # all have read it, or found none
        if processes.first:
            if not resume and there is not None:
                self._clear()
            folder.mkdir(parents=True, exist_ok=True)
            self._write(manifest, identity)
        talk.all(None)

    def outcome(self, name: str) -> Mapping[str, Any] | None:
        """What `keep` kept under a name, None if nothing was."""
        return self._read(self.folder / f"{name}.json")

    def keep(self, name: str, outcome: Mapping[str, Any]) -> None:
        """Keep the outcome of a network that is trained, in place of its checkpoints."""
        self._write(self.folder / f"{name}.json", outcome)
        self._remove_checkpoints(self.folder / name)

    def fit_options(self, name: str) -> dict[str, Any]:
        """The arguments of `fit` with which the network of a name is saved and continued."""
        return {"checkpoint": self.folder / name, "resume": self.resume, "keep": 2}

    def _read(self, path: Path) -> Any:
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            say(f"{path} is refused: it is no JSON ({error})")
            return None

    def _write(self, path: Path, content: Mapping[str, Any]) -> None:
        with replacing(path) as file:
            file.write((json.dumps(content, indent=2) + "\n").encode())

    def _clear(self) -> None:
        for path in sorted(self.folder.iterdir()):
            if path.is_dir():
                self._remove_checkpoints(path)
            elif path.suffix == ".json":
                path.unlink()

    def _remove_checkpoints(self, folder: Path) -> None:
        if folder.is_dir():
            Folder(folder).clear()
            if not any(folder.iterdir()):
                folder.rmdir()
