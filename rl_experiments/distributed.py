"""The processes of one job, as torchrun starts them: which this is, what they tell each other."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TypeVar

from rl_experiments.errors import UserError

T = TypeVar("T")

_PATIENCE = timedelta(hours=1)  # for the slowest episodes of another process


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def count() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process writes and speaks for all."""
    return rank() == 0


def join() -> None:
    """Meet the others; each takes the GPU of its number."""
    if count() > 1:
        import torch
        from accelerate import PartialState  # type: ignore[import-untyped]

        gpus = torch.cuda.device_count()
        if 0 < gpus < count():
            raise UserError(f"gpu.count={count()}: this machine has {gpus}")
        PartialState(cpu=not gpus, timeout=_PATIENCE)


def wait() -> None:
    """Until all have come here."""
    if count() > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()


def share(items: list[T]) -> list[T]:
    """This process's part of the items, which differs by one item at most from the others'."""
    return items[rank() :: count()]


def gathered(items: list[T]) -> list[T]:
    """The items of all processes, in the order of their ranks; the same list everywhere."""
    if count() == 1:
        return items
    from accelerate.utils import gather_object  # type: ignore[import-untyped]

    found: list[T] = gather_object(items)
    return found


def of_first(value: T) -> T:
    """The first process's value, everywhere."""
    return gathered([value])[0]
