"""An environment outside the package, as a user would write one: the parity of a few bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import ClassVar

from environments import End, Environment, ScriptedPolicy, Step

ANSWERS = ("even", "odd")


@dataclass
class Parity(Environment):
    """Say whether the ones among a few bits are even or odd in number."""

    bits: int = 3

    recommended_model: ClassVar[str] = "qwen3_0_6b"
    baselines: ClassVar[Mapping[str, ScriptedPolicy]] = {
        "random": lambda env, rng: rng.choice(ANSWERS)
    }

    def reset(self, seed: int, *, member: int = 0) -> str:
        self.ones = Random(seed).getrandbits(self.bits)
        return " ".join(f"{self.ones:0{self.bits}b}")

    def step(self, reply: str) -> Step:
        if reply not in ANSWERS:
            return Step(end=End.INVALID, reward=-1.0)
        right = reply == ANSWERS[self.ones.bit_count() % 2]
        return Step(end=End.WON if right else End.LOST, reward=float(right))
