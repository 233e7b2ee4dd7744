"""The questions: from the hub, from files, or made up; and which of them are held out."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any
from urllib.error import HTTPError

from environments.gsm8k.replies import gold_number

GSM8K = "openai/gsm8k"
MADE_UP = "gsm_symbolic"

_HELD_OUT = 0.1  # share of the questions of a source that has no split of its own
_MADE_UP_COUNT = 10_000
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_CHOICES = f"{GSM8K} or another data set of the hub, {MADE_UP}, or a .jsonl file"


@dataclass(frozen=True)
class Item:
    """A question and its answer: a worked solution that ends in "#### 18", or the number alone."""

    question: str
    answer: str

    @property
    def digest(self) -> bytes:
        """The same for a question that is spaced or capitalised in another way."""
        return sha256(" ".join(self.question.lower().split()).encode(errors="replace")).digest()


@dataclass(frozen=True)
class Questions:
    """In the order of their episodes; no question is in both."""

    training: tuple[Item, ...]
    evaluation: tuple[Item, ...]


@lru_cache(maxsize=8)  # once a process: every copy of the environment asks for them
def questions(data: str, evaluation_data: str | None) -> Questions:
    """Those of the two settings. Without the second the source is split.

    The hub's data sets have a test split; of any other source a tenth is held out, by a hash of the
    question, and at least one question of two. A ValueError names the setting that is wrong.
    """
    if evaluation_data is not None:
        training = _read("data", data, split="train")
        evaluation = _read("evaluation_data", evaluation_data, split="test")
    elif _is_on_hub(data):
        training, evaluation = (_read("data", data, split=split) for split in ("train", "test"))
    else:
        training, evaluation = _split(_read("data", data, split="train"))
    held_out = {item.digest for item in evaluation}
    training = [item for item in training if item.digest not in held_out]
    if not training:
        raise ValueError(f"env.data={data}: must have questions that are not held out as well")
    for items in (training, evaluation):
        Random("gsm8k").shuffle(items)
    return Questions(tuple(training), tuple(evaluation))


def _split(items: list[Item]) -> tuple[list[Item], list[Item]]:
    ordered = sorted(items, key=lambda item: item.digest)
    share = sum(int.from_bytes(item.digest[:8]) < _HELD_OUT * 2**64 for item in ordered)
    count = max(1, min(share, len(ordered) - 1))
    return ordered[count:], ordered[:count]


def _read(setting: str, source: str, *, split: str) -> list[Item]:
    """The source's questions, each once; one at least."""
    name = f"env.{setting}={source}"
    rows: Iterable[object]
    if source == MADE_UP:
        rows = _made_up(name)
    elif _is_on_hub(source):
        rows = _from_hub(name, source, split)
    else:
        rows = _from_file(name, source)
    items: dict[bytes, Item] = {}
    for number, row in enumerate(rows, start=1):
        item = _item(name, number, row)
        items.setdefault(item.digest, item)
    if not items:
        raise ValueError(f"{name}: must have a question at least")
    return list(items.values())


def _is_on_hub(source: str) -> bool:
    is_name = _HUB_NAME.fullmatch(source) is not None and not source.endswith(".jsonl")
    return is_name and not Path(source).exists()


def _item(name: str, number: int, row: object) -> Item:
    """Of a row with `question` and `answer`; other fields are ignored."""
    question, answer = (
        row.get(key) if isinstance(row, Mapping) else None for key in ("question", "answer")
    )
    is_answer = isinstance(answer, str | int | float)
    if not isinstance(question, str) or not question.strip() or not is_answer:
        raise ValueError(f"{name}: row {number} must have a question and an answer")
    try:
        gold_number(str(answer))
    except ValueError as error:
        raise ValueError(f"{name}: row {number}: the answer {error}") from None
    return Item(question.strip(), str(answer))


def _from_file(name: str, source: str) -> Iterator[object]:
    try:
        text = Path(source).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise ValueError(f"{name}: must be {_CHOICES} ({reason})") from None
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError):
                raise ValueError(f"{name}: line {number} is no JSON object") from None


def _made_up(name: str) -> Iterator[object]:
    try:
        library = import_module("reasoning_gym")
    except ImportError:
        raise ValueError(
            f"{name}: needs a library (pip install reasoning-gym); or set env.data to a .jsonl file"
        ) from None
    made = library.create_dataset("gsm_symbolic", size=_MADE_UP_COUNT, seed=0)
    return (made[index] for index in range(_MADE_UP_COUNT))


def _from_hub(name: str, source: str, split: str) -> Iterable[object]:
    try:
        library: Any = import_module("datasets")
    except ImportError:
        raise ValueError(
            f"{name}: needs a library (pip install datasets); or set env.data to a .jsonl file"
        ) from None
    try:
        with _quick_without_network():
            library.disable_progress_bars()
            rows: Iterable[object] = library.load_dataset(
                source, "main" if source == GSM8K else None, split=split
            )
            return rows
    except Exception as error:
        if isinstance(error, ConnectionError):
            why = "the Hugging Face hub cannot be reached, and there is no copy on this machine"
        else:
            why = (
                f"cannot be loaded from the Hugging Face hub ({' '.join(str(error).split())[:200]})"
            )
        raise ValueError(
            f"{name}: {why}; set env.data to a .jsonl file of questions and answers, or to "
            f"{MADE_UP}"
        ) from None


@contextmanager
def _quick_without_network() -> Iterator[None]:
    """Spares the minute of retries that the libraries make before they look for a copy here."""
    constants: Any = import_module("huggingface_hub.constants")
    was_offline = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = was_offline or not _answers(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = was_offline


def _answers(address: str) -> bool:
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=10).close()
    except HTTPError:
        return True
    except OSError:
        return False
    return True
