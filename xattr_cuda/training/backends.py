"""Which back end a run used, in words."""

from .. import ops


def describe() -> tuple[str, str]:
    """(name, remark) of the back end that serves CPU tensors now; the remark is empty or says why it is not faster."""
    name = ops.active()
    if name != "auto":
        return name, "forced with use_backend"
    reason = ops.unavailable("cpu")
    return ("reference", reason) if reason else ("cpu", "")
