"""The tasks: which calls are asked for, how they are told, and which are held out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from functools import lru_cache
from hashlib import sha256
from random import Random

from environments.tool_test.replies import Call
from environments.tool_test.tools import CATALOGUE

_HELD_OUT = 5  # of so many tasks one is for evaluation
_MOST_DRAWS = 10_000

Task = tuple[Call, ...]


class Arguments(StrEnum):
    """Which arguments are right. Lower-case names, because OmegaConf reads an enum by name."""

    given = "given"  # those that the task gives
    free = "free"  # any of the right types: the tools alone are asked for


def draw(
    rng: Random, offered: Sequence[str], *, counts: tuple[int, int], arguments: Arguments
) -> Task:
    """Calls of different tools, as few and as many as `counts`; without arguments where free."""
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
    """A task of the held-out part, or of the other; LookupError where it seems to have none."""
    for _ in range(_MOST_DRAWS):
        task = draw(rng, offered, counts=counts, arguments=arguments)
        if is_held_out(task) == held_out:
            return task
    raise LookupError("no such task")


def is_held_out(task: Task) -> bool:
    """By its calls alone, in any order."""
    content = sorted(json.dumps([call.name, call.arguments]) for call in task)
    return int.from_bytes(sha256("\n".join(content).encode()).digest()) % _HELD_OUT == 0


@lru_cache(maxsize=64)
def has_both_parts(offered: tuple[str, ...], counts: tuple[int, int], arguments: Arguments) -> bool:
    rng = Random("tool_test")
    try:
        for held_out in (True, False):
            draw_part(rng, offered, counts=counts, arguments=arguments, held_out=held_out)
    except LookupError:
        return False
    return True


def request(task: Task) -> str:
    """The task as the policy is told it.

    >>> print(request((Call("set_timer", {"minutes": 5}), Call("say"))))
    Call these tools:
    - set_timer: minutes=5
    - say
    """
    return "\n".join(["Call these tools:", *map(_line, task)])


def _line(call: Call) -> str:
    values = [f"{k}={json.dumps(v, ensure_ascii=False)}" for k, v in call.arguments.items()]
    return f"- {call.name}: {', '.join(values)}" if values else f"- {call.name}"
