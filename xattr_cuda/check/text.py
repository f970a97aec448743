"""Plain text for reports, no wider than a terminal of 100 columns."""

import textwrap
from collections.abc import Iterable

from ..sweep import LayerError

WIDTH = 100


def paragraph(text: str, indent: int = 0, hanging: int | None = None) -> list[str]:
    """Lines of at most WIDTH columns, the first indented by `indent`, the others by `hanging`."""
    after = indent if hanging is None else hanging
    return textwrap.wrap(
        text, WIDTH, initial_indent=" " * indent, subsequent_indent=" " * after, break_on_hyphens=False
    )


def underlined(title: str) -> list[str]:
    """A title and a rule below it."""
    lines = paragraph(title)
    return [*lines, "-" * max(map(len, lines))]


def grouped(errors: Iterable[LayerError]) -> list[str]:
    """Every layer by name, those of one kind, reason and remedy together."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for e in errors:
        groups.setdefault((e.kind, e.reason, e.remedy), []).append(e.layer or "the model itself")
    lines = []
    for (kind, reason, remedy), names in groups.items():
        lines += paragraph(f"{kind}: {reason}. {remedy}.", 2, 4)
        lines += paragraph(", ".join(names), 6)
    return lines


def plain_layers(errors: Iterable[LayerError]) -> list[dict[str, str]]:
    """The layers in plain types, ready for JSON."""
    return [
        {"layer": e.layer, "kind": e.kind, "error": type(e).__name__, "reason": e.reason, "remedy": e.remedy}
        for e in errors
    ]
