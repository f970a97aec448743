"""Errors about a layer: all name it, say what was met, and what to do."""


class LayerError(ValueError):
    """A layer cannot take part in a sweep.

    Attributes: `layer`, its qualified name in the model; `kind`, the name of its class or function; `reason`; `remedy`.
    """

    def __init__(self, layer: str, kind: str, reason: str, remedy: str) -> None:
        super().__init__(f"layer {layer!r} ({kind}): {reason}. {remedy}.")
        self.layer, self.kind, self.reason, self.remedy = layer, kind, reason, remedy

    def at(self, layer: str, kind: str) -> "LayerError":
        """The same error about a named layer."""
        return self if self.kind else type(self)(layer, kind, self.reason, self.remedy)


class NotHomogeneousError(LayerError):
    """The layer breaks F(c x) = c F(x) for c > 0, so Input x Gradient has no closed form through it."""


class UnsupportedLayerError(LayerError):
    """The layer may well be homogeneous, but no rule tells the sweeps how to pass through it."""
