"""How a kernel is launched: on the stream of its tensors' device or, within torch.compile, as a node of the graph.

What is compiled there carries the source of a kernel and of all functions that it calls by their plain names; so a
kernel imports these by name, and not the module that they are in.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class _Thread(threading.local):
    traced = False


_thread = _Thread()


@contextmanager
def traced() -> Iterator[None]:
    """Within it this thread's launches become nodes of the graph that is being traced."""
    before, _thread.traced = _thread.traced, True
    try:
        yield
    finally:
        _thread.traced = before


def run(kernel: Any, grid: tuple[int, ...], on: Tensor, /, *args: Any, **constants: Any) -> None:
    """kernel[grid](*args, **constants) on the device of the tensor `on`."""
    if _thread.traced:
        torch.library.wrap_triton(kernel)[grid](*args, **constants)
        return
    with torch.cuda.device_of(on):
        kernel[grid](*args, **constants)
