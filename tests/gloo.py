"""Jobs of gloo processes on this machine: started and awaited by a test, and what each of them has found."""

import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def found_by(function: Callable[..., None], world: int, folder: Path, *args: Any, seconds: float) -> list[Any]:
    """Run function(rank, folder, *args) in `world` processes; returns what each handed in, by rank."""
    started = mp.spawn(function, (str(folder), *args), nprocs=world, join=False)
    limit = time.monotonic() + seconds
    try:
        while not started.join(timeout=1):
            assert time.monotonic() < limit, "the processes did not end"
    finally:
        for each in started.processes:
            each.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]


def join(rank: int, world: int, folder: str) -> None:
    """Become one process of the job, on one thread."""
    meeting = f"file://{folder}/meet"
    dist.init_process_group("gloo", meeting, world_size=world, rank=rank, timeout=timedelta(seconds=60))
    torch.set_num_threads(1)


def hand_in(found: Any, rank: int, world: int, folder: str) -> None:
    """Leave what this process has found, and end when all have."""
    torch.save(found, f"{folder}/{rank}.part")
    Path(folder, f"{rank}.part").rename(f"{folder}/{rank}.pt")
    while not all(Path(folder, f"{other}.pt").exists() for other in range(world)):
        time.sleep(0.05)
    os._exit(0)  # gloo's own farewell may abort or wait for ever when one process is faster than the other
