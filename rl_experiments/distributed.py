"""The processes that torchrun starts for one job: their ranks, and how they exchange values.

Every function works in a job of one process too, where there is nobody to wait for.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TypeVar

from rl_experiments.errors import UserError

T = TypeVar("T")

# A process may wait this long for another one whose episodes are slow.
_COLLECTIVE_TIMEOUT = timedelta(hours=1)


def rank() -> int:
    """Return the number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Return the number of processes of the job."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Return whether this is the process that writes files and prints for the whole job."""
    return rank() == 0


def initialize() -> None:
    """Join the process group; each process takes the GPU of its local rank.

    Raises a `UserError` if the machine has fewer GPUs than processes.
    """
    if world_size() > 1:
        import torch
        from accelerate import PartialState  # type: ignore[import-untyped]

        gpus = torch.cuda.device_count()
        if 0 < gpus < world_size():
            raise UserError(
                f"gpu.count={world_size()}: this machine has {gpus}; set gpu.count={gpus}"
            )
        PartialState(cpu=not gpus, timeout=_COLLECTIVE_TIMEOUT)


def barrier() -> None:
    """Wait until every process has called this function."""
    if world_size() > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()


def shard(items: list[T]) -> list[T]:
    """Return the items that this process works on; the shards' sizes differ by one at most."""
    return items[rank() :: world_size()]


def gather(items: list[T]) -> list[T]:
    """Return the items of all processes, ordered by rank; every process gets the same list."""
    if world_size() == 1:
        return items
    from accelerate.utils import gather_object  # type: ignore[import-untyped]

    items_of_all: list[T] = gather_object(items)
    return items_of_all


def broadcast_from_first(value: T) -> T:
    """Return the first process's value in every process."""
    return gather([value])[0]
