"""Scripted policies for GSM8K: each reads the questions and writes a reply."""

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
    """Reply with the answer of any training question."""
    return as_reply(gold_number(rng.choice(env.questions.training).answer))


def commonest(env: Gsm8k, rng: Random) -> str:
    """Reply with the most common answer of the training questions."""
    return as_reply(_most_common_answer(env.questions.training))


def last_in_question(env: Gsm8k, rng: Random) -> str:
    """Reply with the last word of the question that is a number, or with 0 if there is none."""
    words = env.item.question.replace("$", "").split()
    return as_reply(next((word for word in reversed(words) if word.isdigit()), 0))


def oracle(env: Gsm8k, rng: Random) -> str:
    """Reply with the right answer."""
    return as_reply(env.gold)


@lru_cache(maxsize=8)
def _most_common_answer(items: tuple[Item, ...]) -> str:
    return str(Counter(gold_number(item.answer) for item in items).most_common(1)[0][0])


BASELINES: Mapping[str, ScriptedPolicy] = {
    "random": random,
    "commonest": commonest,
    "last_in_question": last_in_question,
    "oracle": oracle,
}
