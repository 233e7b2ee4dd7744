"""The GSM8K environment: a question in words, and one reply that ends in a number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from environments.gsm8k import rewards
from environments.gsm8k.baselines import BASELINES
from environments.gsm8k.data import GSM8K, questions
from environments.gsm8k.replies import as_reply, gold_number, parse
from environments.protocol import End, Environment, ScriptedPolicy, Step, is_evaluation_seed
from environments.settings import is_number, require

_MAX_STEPS = 8  # longer solutions share one category


@dataclass
class Gsm8k(Environment):
    """Answer a question of grade school arithmetic in one reply."""

    data: str = GSM8K  # a data set of the hub, a .jsonl file, or gsm_symbolic
    evaluation_data: str | None = None  # the questions of evaluation; None: a part of `data`
    correct_weight: float = 1.0  # reward for the right number
    format_weight: float = 0.1  # reward for any number that can be read

    recommended_model: ClassVar[str] = "qwen2_5_1_5b"
    baselines: ClassVar[Mapping[str, ScriptedPolicy]] = BASELINES

    def __post_init__(self) -> None:
        for name in ("correct_weight", "format_weight"):
            value = getattr(self, name)
            require(is_number(value, 0, 100), name, value, "from 0 to 100")
        for name in ("data", "evaluation_data"):
            value = getattr(self, name)
            valid = isinstance(value, str) or (value is None and name == "evaluation_data")
            require(valid and value != "", name, value, "the name of a data set, or a .jsonl file")
        self.questions = questions(self.data, self.evaluation_data)

    @property
    def system_prompt(self) -> str:
        return "Reason step by step. Then end with the answer, one number, in \\boxed{}."

    @property
    def category(self) -> str:
        """The number of steps of the worked solution, as `2 steps`; empty without one."""
        steps = min(self.item.answer.count("<<"), _MAX_STEPS)
        more = " or more" if steps == _MAX_STEPS else ""
        return f"{steps}{more} step{'s' if steps > 1 else ''}" if steps else ""

    @property
    def task_key(self) -> str:
        """The question."""
        return self.item.question

    def reset(self, seed: int, *, member: int = 0) -> str:
        held_out = is_evaluation_seed(seed)
        items = self.questions.evaluation if held_out else self.questions.training
        self.item = items[seed // 2 % len(items)]
        self.gold = gold_number(self.item.answer)
        self._ended = False
        return self.item.question

    def step(self, reply: str) -> Step:
        self._require_running()
        answered = parse(reply)
        correct = rewards.correct(answered, self.gold)
        readable = rewards.readable(answered)
        end = End.WON if correct else End.LOST if readable else End.INVALID
        return self._finish(
            end,
            reward=self.correct_weight * correct + self.format_weight * readable,
            readable=readable,
        )

    def truncate(self) -> Step:
        self._require_running()
        return self._finish(End.TRUNCATED)

    def reply_from_input(self, text: str) -> str:
        """Accept the number alone, or a whole reply."""
        is_bare = "boxed" not in text and "####" not in text
        return as_reply(text.strip()) if is_bare else text

    def _finish(self, end: End, *, reward: float = 0.0, readable: float = 0.0) -> Step:
        self._ended = True
        return Step(
            observation=f"The answer is {self.gold}.",
            reward=reward,
            end=end,
            metrics={"win": float(end is End.WON), "format": readable},
        )
