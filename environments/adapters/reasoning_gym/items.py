"""Items of reasoning-gym's datasets: split in two by their question, scored without harm."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any
from zlib import crc32

from environments.adapters.library import Chance, load
from environments.adapters.rewards import bounded

_SPARE = 4  # candidates for an item of a part: each has an even chance to be in it
_TRIES = 256
_SUM = re.compile(r"(?:[0-9+\-/() ]|\*(?!\*)){1,200}")
# No names: `oracle_answer` is one that a scorer knows.
_CELLS = re.compile(r"[0-9 \n-]{1,4000}")
_BOARD = re.compile(r"[Q_ \n]{1,4000}")
_CAPITALS = re.compile(r"[A-Z]{1,4000}")
# These scorers run the answer as Python: only what can do nothing is handed to them.
_HARMLESS = {
    "binary_matrix": _CELLS,
    "countdown": _SUM,
    "n_queens": _BOARD,
    "puzzle24": _SUM,
    "spiral_matrix": _CELLS,
    "string_insertion": _CAPITALS,
}
# And these need answers that can do anything.
_REFUSED = (
    *("intermediate_integration", "polynomial_multiplication", "simple_integration"),
    "composite",  # names joined by + do the same
)


def library() -> Any:
    return load("reasoning_gym", env="reasoning_gym", install="reasoning-gym==0.1.25")


@dataclass(frozen=True)
class Item:
    question: str
    answer: str | None  # None where the dataset knows no answer, only how to check one
    entry: dict[str, Any]  # as the library made it


class Source:
    """One dataset. A question is either for training or held out, by its hash."""

    def __init__(self, name: str, options: dict[str, Any], *, count: int) -> None:
        if name in _REFUSED:
            raise ValueError(f"{name} is not taken: see the README")
        size = _SPARE * count
        with Chance(f"reasoning_gym/{name}")():
            self._dataset = library().create_dataset(name, **{"seed": 0, **options, "size": size})
        self.name = name
        self._count = count
        self._size = size

    def item(self, number: int, *, held_out: bool) -> Item:
        failure: Exception | None = None
        for attempt in range(_TRIES):
            index = (number + attempt * (self._count + 1)) % self._size
            try:
                with Chance(f"reasoning_gym/{self.name}/{index}")():
                    entry = self._dataset[index]
            except Exception as error:  # a few makers find no item for some of their seeds
                failure = error
                continue
            question = str(entry["question"])
            if crc32(question.encode()) % 2 == held_out:
                answer = entry["answer"]
                return Item(question, None if answer is None else str(answer), entry)
        reason = f" ({failure})" if failure else ""
        raise ValueError(
            f"env.dataset={self.name}: must have more than a few different questions{reason}"
        )

    @cached_property
    def has_answers(self) -> bool:
        return self.item(0, held_out=False).answer is not None

    def score(self, answer: str, item: Item) -> float:
        """From 0 to 1; 0 for an answer that the scorer cannot take."""
        harmless = _HARMLESS.get(self.name)
        if harmless and not harmless.fullmatch(answer):
            return 0.0
        if len(answer) > 1000 + 4 * len(item.answer or ""):
            return 0.0
        try:
            with Chance(f"reasoning_gym/{self.name}/score")():
                return bounded(self._dataset.score_answer(answer, item.entry), 0.0, 1.0)
        except Exception:  # of any kind: the scorers were written for answers in good form
            return 0.0


@lru_cache(maxsize=8)
def sources(names: tuple[str, ...], options: str, count: int) -> tuple[Source, ...]:
    by_name = json.loads(options)
    return tuple(Source(name, by_name.get(name, {}), count=count) for name in names)
