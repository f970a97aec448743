"""Attributions behind Captum's calling conventions, every one of them differentiable."""

from .expected_gradients import ExpectedGradients
from .integrated_gradients import IntegratedGradients
from .xgradient import XGradient

__all__ = ["ExpectedGradients", "IntegratedGradients", "XGradient"]
