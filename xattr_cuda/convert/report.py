"""What `convert` changed, or why it could not, as text for a terminal and as a dictionary."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..check.measure import tensors_of
from ..check.text import grouped, paragraph, plain_layers, underlined
from ..sweep import LayerError
from .edit import Change


class ConversionError(ValueError):
    """Some layers cannot be converted. `.layers` holds every one, with `.layer`, `.kind`, `.reason` and `.remedy`."""

    def __init__(self, model: str, layers: Sequence[LayerError]) -> None:
        count = len(layers)
        title = f"{model} cannot be converted: {count} layer{'s are' if count > 1 else ' is'} in the way"
        super().__init__("\n".join([title, *grouped(layers)]))
        self.layers = list(layers)

    def as_dict(self) -> dict[str, Any]:
        """The layers in plain types, ready for JSON."""
        return {"layers": plain_layers(self.layers)}


@dataclass(frozen=True)
class OutputChange:
    """How the output of a conversion differs from the original's, in evaluation mode."""

    relative_l2: float
    largest: float
    same_argmax: float | None  # the share of samples (pixels, too) whose largest output stays it; None with one


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion changed. `str(report)` is plain text of at most 100 columns."""

    model: str  # the name of its class
    changes: tuple[Change, ...]
    output: OutputChange | None  # None without an example input
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """The report in plain types, ready for JSON."""
        return {
            "model": self.model,
            "changes": [change._asdict() for change in self.changes],
            "output": None if self.output is None else asdict(self.output),
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        count = len(self.changes)
        lines = underlined(f"{self.model} is now an X-DNN: {count} change{'' if count == 1 else 's'}")
        for change in self.changes:
            lines += paragraph(f"{change.layer or 'the model itself'}: {change.before} -> {change.after}", 2, 6)
        if self.output is not None:
            lines += ["", *_output_lines(self.output)]
        for note in self.notes:
            lines += ["", *paragraph(note)]
        return "\n".join(lines)


def _output_lines(output: OutputChange) -> list[str]:
    lines = [
        "Output on the example, in evaluation mode, against the original",
        f"  relative L2 difference    {output.relative_l2:.2e}",
        f"  largest difference        {output.largest:.2e}",
    ]
    if output.same_argmax is not None:
        lines.append(f"  same largest output       {output.same_argmax:.1%} of them")
    return lines


@torch.no_grad()
def output_change(original: nn.Module, converted: nn.Module, inputs: tuple[Tensor, ...]) -> OutputChange | None:
    """Compare two networks that are in evaluation mode; None where their outputs have different shapes."""
    want, got = (tensors_of(model(*(x.clone() for x in inputs))) for model in (original, converted))
    if [y.shape for y in want] != [y.shape for y in got]:
        return None
    before, after = (torch.cat([y.flatten().double() for y in outputs]) for outputs in (want, got))
    size, gap = float(before.norm()), after - before
    largest = float(gap.abs().max()) if gap.numel() else 0.0
    return OutputChange(float(gap.norm()) / (size or 1.0), largest, _same_argmax(want, got))


def _same_argmax(want: list[Tensor], got: list[Tensor]) -> float | None:
    """The share of equal classes, where there is one output, with classes in dimension 1."""
    if len(want) != 1 or want[0].dim() < 2 or want[0].shape[1] < 2 or not want[0].numel():
        return None
    return float((want[0].argmax(1) == got[0].argmax(1)).double().mean())
