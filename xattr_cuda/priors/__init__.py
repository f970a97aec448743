"""Attribution priors: functions from an attribution to a scalar penalty."""

from .sparsity import gini, l1, l2
from .spatial import right_reasons, total_variation

__all__ = ["gini", "l1", "l2", "right_reasons", "total_variation"]
