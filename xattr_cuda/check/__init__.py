"""Whether a network is an X-DNN: every layer that breaks it, and how far the network is from one on an input."""

from torch import Tensor, nn

from ..sweep import LayerError, offenders
from .measure import Measurement, NotCopiedError, copied, floating_inputs, measure
from .report import Report

__all__ = ["Measurement", "Report", "check"]


def check(model: nn.Module, example_input: Tensor | tuple[Tensor, ...]) -> Report:
    """Check by rule and by measurement that a network is an X-DNN, so that its attribution has a closed form.

    example_input: what the model takes, a floating tensor [B, ...] or a tuple of them.

    By rule, every layer that cannot take part in the sweeps is named, with the reason and the remedy. By measurement,
    in the model's current mode, on a copy in float64: the relative residuals of F(c x) = c F(x) at several c, and of
    completeness, sum of attribution = <u, y>, for a random u (design section 2). They are taken even where a rule
    fails, to show by how much, and count as kept up to `Measurement.tolerance`. Neither the model, its buffers nor
    the generators of random numbers change.

    Returns a `Report`: print it, ask its `.ok`, or take its `.as_dict()`. A LayerError met while measuring joins the
    report; what else the forward raises (a wrong input shape, say) is raised as it is.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` is a {type(model).__name__}; wanted a torch.nn.Module")
    inputs = floating_inputs(example_input)
    found: list[LayerError] = []
    measured, notes = None, []
    try:
        # Tracing runs the forward's Python, which may write to buffers: it is kept from the model itself.
        found += offenders(copied(model), len(inputs))
        measured = measure(model, inputs)
    except LayerError as error:
        if error.layer not in {other.layer for other in found}:
            found.append(error)
        notes.append("Nothing was measured, because the forward pass refused one of the layers above.")
    except NotCopiedError as error:
        found += offenders(model, len(inputs))
        notes.append(f"Nothing was measured, because the model cannot be copied: {error}")
    return Report(type(model).__name__, tuple(found), measured, tuple(notes))
