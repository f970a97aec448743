"""Training with attribution priors: a loop for long runs, and the experiments of the command line.

`fit` is the loop and `join` the processes that run it: `loop` over `saving`, `checkpoints`, `state`, `signals`,
`distributed`, `log` and `board`. `decoy` and `tabular` make the experiments' data; `methods` are the attributions that
can be trained through; `protocol` and `demo` train; `timing` measures; `figures` draws; `errors` says what went wrong.
What needs more than torch and NumPy is imported where it is used, so that the package itself stays light.
"""

from .distributed import Processes, join
from .loop import FitResult, fit
from .signals import Stopped

__all__ = ["FitResult", "Processes", "Stopped", "fit", "join"]
