"""Scripted policies for GSM8K: each looks at the environment's questions and writes a reply."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from random import Random
from typing import TYPE_CHECKING

from environments.gsm8k.data import Item
from environments.gsm8k.replies import as_reply, gold_number

if TYPE_CHECKING:
    from environments.gsm8k.env import Gsm8k
    from environments.protocol import ScriptedPolicy


def random(env: Gsm8k, rng: Random) -> str:
    """The answer of any training question."""
    return as_reply(gold_number(rng.choice(env.questions.training).answer))


def commonest(env: Gsm8k, rng: Random) -> str:
    """The number that answers most of the training questions."""
    return as_reply(_commonest(env.questions.training))


def last_in_question(env: Gsm8k, rng: Random) -> str:
    """The last word of the question that is a number, else 0."""
    words = env.item.question.replace("$", "").split()
    return as_reply(next((word for word in reversed(words) if word.isdigit()), 0))


def oracle(env: Gsm8k, rng: Random) -> str:
    return as_reply(env.gold)


@lru_cache(maxsize=8)
def _commonest(items: tuple[Item, ...]) -> str:
    return str(Counter(gold_number(item.answer) for item in items).most_common(1)[0][0])


BASELINES: Mapping[str, ScriptedPolicy] = {
    "random": random,
    "commonest": commonest,
    "last_in_question": last_in_question,
    "oracle": oracle,
}
