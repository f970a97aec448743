"""What `check` found, as text for a terminal and as a dictionary."""

from dataclasses import dataclass
from typing import Any

from ..sweep import LayerError
from .measure import Measurement
from .text import grouped, paragraph, plain_layers, underlined

_HELD_BY_BATCH = (
    "In training the network rescales by statistics of its batch, so F(c x) = c F(x) fails across inputs; the "
    "residuals above are for information. The statistics are held constant within a step: the attribution is "
    "complete, which is what the sweeps rely on. In evaluation mode the network is homogeneous."
)
_ONLY_MEASURED = (
    "No rule refuses a layer, yet the measurement finds a violation: look for state, hooks or branches on data in the "
    "forward pass."
)
_ONLY_BY_RULE = (
    "The measurement finds no violation on this input: the layers above are refused for what their parameters may "
    "become, or for want of a rule."
)
_ZERO = "The output is zero on this input, so the residuals say nothing; try another input."


@dataclass(frozen=True)
class Report:
    """The result of a check. `str(report)` is plain text of at most 100 columns."""

    model: str  # the name of its class
    offenders: tuple[LayerError, ...]  # each with .layer, .kind, .reason and .remedy
    measured: Measurement | None  # None where the forward pass could not run; the notes say why
    remarks: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether attributions of the network are exact: no offender, complete, and homogeneous in evaluation."""
        return not self.offenders and self._kept

    @property
    def _kept(self) -> bool:
        return self.measured is not None and self.measured.complete and self.measured.homogeneous_in_evaluation

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know in order to read the findings."""
        notes, m = list(self.remarks), self.measured
        if m is None:
            return tuple(notes)
        if m.zero_output:
            notes.append(_ZERO)
        elif self.offenders and self._kept:
            notes.append(_ONLY_BY_RULE)
        if not self.offenders and not self._kept:
            notes.append(_ONLY_MEASURED)
        if m.complete and not m.homogeneous and m.homogeneous_in_evaluation:
            notes.append(_HELD_BY_BATCH)
        return tuple(notes)

    def as_dict(self) -> dict[str, Any]:
        """The report in plain types, ready for JSON."""
        return {
            "model": self.model,
            "ok": self.ok,
            "offenders": plain_layers(self.offenders),
            "measured": None if self.measured is None else self.measured.as_dict(),
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        verdict = "an X-DNN: its attributions are exact" if self.ok else "not an X-DNN as it is"
        lines = underlined(f"{self.model} is {verdict}")
        if self.offenders:
            count = len(self.offenders)
            lines += ["", f"By rule: {count} layer{'s' if count > 1 else ''} to change", *grouped(self.offenders)]
        else:
            lines += ["", "By rule: every layer has a closed form"]
        if self.measured is not None:
            lines += ["", *_measured_lines(self.measured)]
        for note in self.notes:
            lines += ["", *paragraph(note)]
        return "\n".join(lines)


def _measured_lines(m: Measurement) -> list[str]:
    mode, dtype = "training" if m.training else "evaluation", str(m.dtype).removeprefix("torch.")
    lines = [
        f"Measured in {mode} mode, {dtype}: relative residuals, kept up to {m.tolerance:.0e}",
        _row("sum of attribution = <u, y>", m.completeness, m.tolerance),
        *(_row(f"F(c x) = c F(x), c = {c:g}", r, m.tolerance) for c, r in m.homogeneity.items()),
    ]
    if m.in_evaluation is not None:
        lines.append("In evaluation mode")
        lines += [_row(f"F(c x) = c F(x), c = {c:g}", r, m.tolerance) for c, r in m.in_evaluation.items()]
    return lines


def _row(what: str, residual: float, tolerance: float) -> str:
    return f"  {what:<30}{residual:>9.1e}  {'kept' if residual <= tolerance else 'violated'}"
