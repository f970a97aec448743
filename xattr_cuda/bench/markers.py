"""Tables kept inside Markdown files, between the lines `<!-- bench:NAME -->` and `<!-- /bench:NAME -->`."""

import re
from collections.abc import Mapping

from ..training.errors import UserError

_MARKER = re.compile(r"^<!-- (/?)bench:([a-z0-9-]+) -->$", re.MULTILINE)


def blocks(text: str, where: str) -> dict[str, tuple[int, int]]:
    """Where the contents of every block start and end in `text`, by name.

    UserError, with `where` as the file's name, for a marker without its partner, for a name that occurs twice and for a
    block inside another.
    """
    found: dict[str, tuple[int, int]] = {}
    name, start = None, 0
    for marker in _MARKER.finditer(text):
        closing, this = bool(marker[1]), marker[2]
        line = text.count("\n", 0, marker.start()) + 1
        if not closing:
            if name is not None:
                raise UserError(
                    f"{where}, line {line}: block {this!r} starts inside block {name!r}; end that one first"
                )
            if this in found:
                raise UserError(f"{where}, line {line}: a second block {this!r}; wanted one")
            name, start = this, marker.end() + 1
        elif this != name:
            raise UserError(f"{where}, line {line}: block {this!r} ends without a start")
        else:
            found[this], name = (start, marker.start()), None
    if name is not None:
        raise UserError(f"{where}: block {name!r} has no end; add <!-- /bench:{name} -->")
    return found


def require(text: str, names: list[str], where: str) -> None:
    """UserError unless `text` has a well-formed block for every name."""
    there = blocks(text, where)
    for name in names:
        if name not in there:
            raise UserError(f"{where} has no block {name!r}; add <!-- bench:{name} --> and <!-- /bench:{name} -->")


def rewrite(text: str, contents: Mapping[str, str], where: str) -> str:
    """`text` with the contents of these blocks replaced, an empty line around each; all else stays to the byte."""
    require(text, list(contents), where)
    places = blocks(text, where)
    for name in sorted(contents, key=lambda name: places[name], reverse=True):
        start, end = places[name]
        text = f"{text[:start]}\n{contents[name].strip()}\n\n{text[end:]}"
    return text
