"""Datasets of reasoning-gym: a question, one reply, and the dataset's own score."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from environments.adapters.library import one_line, parameters_of, refuse_unknown_option
from environments.adapters.reasoning_gym.baselines import BASELINES, WITHOUT_ORACLE
from environments.adapters.reasoning_gym.items import Item, Source, library, sources
from environments.adapters.replies import as_element, last_element
from environments.protocol import End, Environment, ScriptedPolicy, Step, is_evaluation_seed
from environments.settings import did_you_mean, is_int, require


@dataclass
class ReasoningGym(Environment):
    """Answer a question of one dataset, or of several datasets in turn."""

    dataset: str = "chain_sum"  # a name, or names joined by +
    options: dict[str, Any] | None = None  # of the dataset; of several by name, {maze: {...}}
    items: int = 5000  # of each dataset, both for training and for evaluation

    recommended_model: ClassVar[str] = "qwen2_5_1_5b"
    baselines: ClassVar[Mapping[str, ScriptedPolicy]] = BASELINES

    def __post_init__(self) -> None:
        require(is_int(self.items, 1), "items", self.items, "a whole number >= 1")
        names = str(self.dataset).split("+")
        known = library().factory.DATASETS
        for name in names:
            hint = did_you_mean(name, known) if name else "; a name beside the + is missing"
            allowed = f"one of the {len(known)} datasets of reasoning-gym{hint}"
            require(name in known, "dataset", self.dataset, allowed)
        given = dict(self.options or {})
        options = given if len(names) > 1 else {names[0]: given}
        require(set(options) <= set(names), "options", self.options, f"by name: {', '.join(names)}")
        try:
            settings = json.dumps(options, sort_keys=True)
            self._sources = sources(tuple(names), settings, self.items)
        except Exception as error:
            refuse_unknown_option(error, self.dataset, lambda: self._options_of(names))
            raise ValueError(
                f"env.dataset={self.dataset}: must be a dataset that allows "
                f"env.options={self.options} and env.items={self.items} ({one_line(error)})"
            ) from None
        self._item: Item | None = None
        if not all(source.has_answers for source in self._sources):
            self.baselines = WITHOUT_ORACLE  # type: ignore[misc]  # of this instance only

    @staticmethod
    def _options_of(names: list[str]) -> list[str]:
        configs = (library().factory.DATASETS[name][1] for name in names)
        return [option for config in configs for option in parameters_of(config)]

    @property
    def item(self) -> Item:
        """The item of the current episode."""
        if self._item is None:
            raise RuntimeError("no episode: call reset")
        return self._item

    @property
    def source(self) -> Source:
        """The dataset of the current episode."""
        return self._sources[self._index]

    @property
    def category(self) -> str:
        """The name of the current dataset."""
        return self.source.name if self._item else ""

    @property
    def system_prompt(self) -> str:
        return (
            "Reason step by step. Then end with the answer alone in an element, "
            "<answer>like this</answer>."
        )

    @property
    def task_key(self) -> str:
        """The dataset and the question."""
        return f"{self.source.name}: {self._item.question}" if self._item else ""

    def reset(self, seed: int, *, member: int = 0) -> str:
        number, self._index = divmod(seed // 2, len(self._sources))
        self._item = self.source.item(number % self.items, held_out=is_evaluation_seed(seed))
        self._ended = False
        return self._item.question

    def step(self, reply: str) -> Step:
        self._require_running()
        answer = last_element("answer", reply)
        if not answer:
            return self._finish(End.INVALID)
        score = self.source.score(answer, self.item)
        return self._finish(End.WON if score >= 1 else End.LOST, reward=score, readable=1.0)

    def truncate(self) -> Step:
        self._require_running()
        return self._finish(End.TRUNCATED)

    def reply_from_input(self, text: str) -> str:
        """Accept the answer alone, or a whole reply."""
        return text if "<answer>" in text else as_element("answer", text.strip())

    def _finish(self, end: End, *, reward: float = 0.0, readable: float = 0.0) -> Step:
        self._ended = True
        answer = self.item.answer
        return Step(
            observation="" if answer is None else f"The answer is {answer}",
            reward=reward,
            end=end,
            metrics={"win": float(end is End.WON), "format": readable},
        )
