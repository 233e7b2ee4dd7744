"""The tasks: the calls asked for, their text for the policy, and which tasks are held out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from functools import lru_cache
from hashlib import sha256
from random import Random

from environments.tool_test.replies import Call
from environments.tool_test.tools import CATALOGUE

_TASKS_PER_HELD_OUT = 5  # one task in five is for evaluation
_MAX_DRAWS = 10_000  # before a part is taken to have no tasks

Task = tuple[Call, ...]


class Arguments(StrEnum):
    """Which arguments are right.

    The names are in lower case because OmegaConf reads an enum by its names.
    """

    given = "given"  # those that the task names
    free = "free"  # any of the right types; the task names the tools alone


def draw(
    rng: Random, offered: Sequence[str], *, counts: tuple[int, int], arguments: Arguments
) -> Task:
    """Draw calls of different tools; `counts` is the smallest and the largest number of calls.

    The calls have no arguments if these are free.
    """
    names = rng.sample(offered, rng.randint(*counts))
    if arguments is Arguments.free:
        return tuple(map(Call, names))
    return tuple(Call(name, CATALOGUE[name].draw(rng)) for name in names)


def draw_part(
    rng: Random,
    offered: Sequence[str],
    *,
    counts: tuple[int, int],
    arguments: Arguments,
    held_out: bool,
) -> Task:
    """Draw a task of the held-out part, or of the training part.

    Raises `LookupError` if the part seems to have no task.
    """
    for _ in range(_MAX_DRAWS):
        task = draw(rng, offered, counts=counts, arguments=arguments)
        if is_held_out(task) == held_out:
            return task
    raise LookupError("no such task")


def is_held_out(task: Task) -> bool:
    """Return whether a task is for evaluation; this depends on its calls, not on their order."""
    content = sorted(json.dumps([call.name, call.arguments]) for call in task)
    return int.from_bytes(sha256("\n".join(content).encode()).digest()) % _TASKS_PER_HELD_OUT == 0


@lru_cache(maxsize=64)
def has_both_parts(offered: tuple[str, ...], counts: tuple[int, int], arguments: Arguments) -> bool:
    """Return whether there are tasks for training and others for evaluation."""
    rng = Random("tool_test")
    try:
        for held_out in (True, False):
            draw_part(rng, offered, counts=counts, arguments=arguments, held_out=held_out)
    except LookupError:
        return False
    return True


def request(task: Task) -> str:
    """Return the text of a task for the policy.

    >>> print(request((Call("set_timer", {"minutes": 5}), Call("say"))))
    Call these tools:
    - set_timer: minutes=5
    - say
    """
    return "\n".join(["Call these tools:", *map(_line, task)])


def _line(call: Call) -> str:
    values = [f"{k}={json.dumps(v, ensure_ascii=False)}" for k, v in call.arguments.items()]
    return f"- {call.name}: {', '.join(values)}" if values else f"- {call.name}"
