"""Attribution priors: functions from an attribution to a scalar penalty; any such function is one.

`gini`, `l1`, `l2`, `total_variation` and `consistency` are priors; `right_reasons`, `outside`, `graph_laplacian`,
`fairness` and `target_distribution` make one from what they know of the features. `schedule` warms a strength up.
Sums are taken in fp32 at least; the value has the attribution's dtype.

Every prior averages over the batch. N processes that average their gradients, as DistributedDataParallel and FSDP do,
hold shares of one global batch, of any sizes, none included; with `group=` each of them has the prior of the global
batch as its value, and averaging gives the gradient that one process would have on that batch.

- `group` holds the processes over which gradients are averaged: a ProcessGroup, or `torch.distributed.group.WORLD`.
  None, the default, means this process alone; so does a group of one. WORLD is None until `init_process_group` has been
  called: call it before a prior is made with it.
- Every process of the group calls the prior and its backward pass, in the same order; a process without samples does so
  with an attribution [0, ...] of as many features and of the same dtype.
- A task loss that is a mean over each process's own samples weighs the samples of a small share more. For the loss of
  the global batch, sum it over the samples and multiply by N over their number in the global batch.
- `attribute_loss` attributes the criterion that it is given. Give it one that sums, and scale the loss afterwards: a
  mean puts the size of the process's own share into the attribution.
"""

from .augmentation import consistency
from .distribution import target_distribution
from .fairness import fairness
from .graph import graph_laplacian
from .sparsity import gini, l1, l2
from .spatial import outside, right_reasons, total_variation
from .warmup import Schedule, schedule

__all__ = [
    "Schedule",
    "consistency",
    "fairness",
    "gini",
    "graph_laplacian",
    "l1",
    "l2",
    "outside",
    "right_reasons",
    "schedule",
    "target_distribution",
    "total_variation",
]
