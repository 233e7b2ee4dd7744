"""Items of reasoning-gym's datasets: split by their questions, and scored without risk."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any
from zlib import crc32

from environments.adapters.library import RandomState, load
from environments.adapters.reasoning_gym.sums import is_right_sum
from environments.adapters.rewards import bounded

_SIZE_FACTOR = 4  # a dataset is larger than its parts, because half of it belongs to either part
_MAX_TRIES = 256  # to draw an item of the wanted part
_WRONG_SUM = "0"
_SUM = re.compile(r"(?:[0-9+\-/() ]|\*(?!\*)){1,200}")
# These patterns allow no names, because `oracle_answer` is a name that a scorer can evaluate.
_CELLS = re.compile(r"[0-9 \n-]{1,4000}")
_BOARD = re.compile(r"[Q_ \n]{1,4000}")
_CAPITALS = re.compile(r"[A-Z]{1,4000}")
# The scorers of these datasets run the answer as Python. They only get answers that fully match.
HARMLESS_ANSWERS = {
    "binary_matrix": _CELLS,
    "countdown": _SUM,
    "n_queens": _BOARD,
    "puzzle24": _SUM,
    "spiral_matrix": _CELLS,
    "string_insertion": _CAPITALS,
}
# The scorers of these datasets take sums that round, and one of them other numbers than those of
# the question. A sum wins only if it is right by our own arithmetic as well.
_TARGETS: Mapping[str, Callable[[Mapping[str, Any]], int]] = {
    "countdown": lambda metadata: int(metadata["target"]),
    "puzzle24": lambda metadata: 24,
}
# These datasets are refused. The first three need answers that no pattern can make safe.
REFUSED_DATASETS = (
    *("intermediate_integration", "polynomial_multiplication", "simple_integration"),
    "composite",  # several datasets are chosen by names joined with +
)


def library() -> Any:
    """Return the module `reasoning_gym`; raises `ValueError` if it is not installed."""
    return load("reasoning_gym", env="reasoning_gym", install="reasoning-gym==0.1.25")


@dataclass(frozen=True)
class Item:
    """A question with its answer and the entry of the dataset."""

    question: str
    answer: str | None  # None if the dataset can only check answers
    entry: dict[str, Any]  # as the library makes it


class Source:
    """A dataset, whose questions are for training or held out by their hash."""

    def __init__(self, name: str, options: dict[str, Any], *, count: int) -> None:
        if name in REFUSED_DATASETS:
            raise ValueError(f"{name} is not supported: see environments/adapters/README.md")
        size = _SIZE_FACTOR * count
        with RandomState(f"reasoning_gym/{name}").active():
            self._dataset = library().create_dataset(name, **{"seed": 0, **options, "size": size})
        self.name = name
        self._count = count
        self._size = size

    def item(self, number: int, *, held_out: bool) -> Item:
        """Return an item of the training part, or of the held-out part.

        Raises `ValueError` if the dataset has too few different questions.
        """
        failure: Exception | None = None
        for attempt in range(_MAX_TRIES):
            index = (number + attempt * (self._count + 1)) % self._size
            try:
                with RandomState(f"reasoning_gym/{self.name}/{index}").active():
                    entry = self._dataset[index]
            except Exception as error:  # a few datasets have no item for some seeds
                failure = error
                continue
            question = str(entry["question"])
            if crc32(question.encode()) % 2 == held_out:
                answer = entry["answer"]
                return Item(question, None if answer is None else str(answer), entry)
        reason = f" ({failure})" if failure else ""
        raise ValueError(f"env.dataset={self.name}: must have enough different questions{reason}")

    @cached_property
    def has_answers(self) -> bool:
        """Whether the dataset knows the answers of its items."""
        return self.item(0, held_out=False).answer is not None

    def score(self, answer: str, item: Item) -> float:
        """Return the dataset's score of an answer, from 0 to 1; 0 if its scorer cannot take it."""
        harmless = HARMLESS_ANSWERS.get(self.name)
        if harmless and not harmless.fullmatch(answer):
            return 0.0
        if len(answer) > 1000 + 4 * len(item.answer or ""):
            return 0.0
        try:
            with RandomState(f"reasoning_gym/{self.name}/score").active():
                score = bounded(self._dataset.score_answer(answer, item.entry), 0.0, 1.0)
                if score == 1 and not self._is_right(answer, item):
                    score = bounded(self._dataset.score_answer(_WRONG_SUM, item.entry), 0.0, 0.5)
                return score
        except Exception:  # of any type: the scorers expect answers in good form
            return 0.0

    def _is_right(self, answer: str, item: Item) -> bool:
        """Return whether an answer that the dataset takes for right is so by our check, if any."""
        if self.name not in _TARGETS:
            return True
        metadata = item.entry["metadata"]
        return is_right_sum(answer, metadata["numbers"], _TARGETS[self.name](metadata))


@lru_cache(maxsize=8)
def sources(names: tuple[str, ...], options: str, count: int) -> tuple[Source, ...]:
    """Return the datasets with their options, a JSON object by name, and the items of each part."""
    by_name = json.loads(options)
    return tuple(Source(name, by_name.get(name, {}), count=count) for name in names)
