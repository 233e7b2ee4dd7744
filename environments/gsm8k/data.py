"""The questions, from the hub, a file or a generator, and which of them are held out."""

from __future__ import annotations

import json
import math
import re
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any
from urllib.error import HTTPError

from environments import files
from environments.gsm8k.replies import gold_number

GSM8K = "openai/gsm8k"
GENERATED = "gsm_symbolic"

_HELD_OUT_SHARE = 0.1  # of the questions of a source without a test split
_GENERATED_COUNT = 10_000
# A name that ends so is a file's, although the hub could have it too.
_FILE_SUFFIXES = {
    *(".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".txt", ".parquet", ".arrow", ".xlsx", ".zip"),
    *(".gz", ".zst", ".xz", ".yaml", ".yml", ".py"),
}
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_CHOICES = f"{GSM8K} or another data set of the hub, {GENERATED}, or a .jsonl file"


@dataclass(frozen=True)
class Item:
    """A question and its answer, which is a number or a worked solution that ends in "#### 18"."""

    question: str
    answer: str

    @property
    def digest(self) -> bytes:
        """A hash of the question that ignores spaces and capitals."""
        return sha256(" ".join(self.question.lower().split()).encode(errors="replace")).digest()


@dataclass(frozen=True)
class Questions:
    """The questions of training and evaluation in the order of episodes; none is in both."""

    training: tuple[Item, ...]
    evaluation: tuple[Item, ...]


@lru_cache(maxsize=8)  # read once a process, although every copy of the environment asks
def questions(data: str, evaluation_data: str | None) -> Questions:
    """Return the questions that the settings `data` and `evaluation_data` name.

    Without `evaluation_data` the evaluation takes the test split of a data set of the hub. Of any
    other source it takes a tenth, by a hash of the question, and at least one question. Raises
    `ValueError` with the name of the setting that is wrong.
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
    """Return the training questions and the held-out ones of a source without a split."""
    ordered = sorted(items, key=lambda item: item.digest)
    share = sum(int.from_bytes(item.digest[:8]) < _HELD_OUT_SHARE * 2**64 for item in ordered)
    count = max(1, min(share, len(ordered) - 1))
    return ordered[count:], ordered[:count]


def _read(setting: str, source: str, *, split: str) -> list[Item]:
    """Return the questions of a source without repetitions. Raises `ValueError` if it has none."""
    name = f"env.{setting}={source}"
    rows: Iterable[object]
    if source == GENERATED:
        rows = _generated(name)
    elif _is_on_hub(source):
        rows = _from_hub(name, source, split)
    else:
        rows = _from_file(name, source)
    items: dict[bytes, Item] = {}
    for number, row in enumerate(rows, start=1):
        item = _item(name, number, row)
        items.setdefault(item.digest, item)
    if not items:
        raise ValueError(f"{name}: must have at least one question")
    return list(items.values())


def _is_on_hub(source: str) -> bool:
    is_name = _HUB_NAME.fullmatch(source) is not None
    return is_name and Path(source).suffix not in _FILE_SUFFIXES and not files.exists(source)


def _item(name: str, number: int, row: object) -> Item:
    """Return the question and answer of a row of the source; other fields are ignored."""
    if not isinstance(row, Mapping):
        raise ValueError(f"{name}: row {number} must have a question and an answer")
    question, answer = row.get("question"), row.get("answer")
    if not isinstance(question, str) or not question.strip() or not _is_answer(answer):
        fields = ", ".join(str(key)[:20] for key in list(row)[:8])
        raise ValueError(
            f"{name}: row {number} must have a question and an answer; its fields are: {fields}"
        )
    is_float = isinstance(answer, float) and math.isfinite(answer)
    answer = f"{Decimal(str(answer)):f}" if is_float else str(answer)
    try:
        gold_number(answer)
    except ValueError as error:
        raise ValueError(f"{name}: row {number}: the answer {error}") from None
    return Item(question.strip(), answer)


def _is_answer(answer: object) -> bool:
    return isinstance(answer, str | int | float) and not isinstance(answer, bool)


def _from_file(name: str, source: str) -> Iterator[object]:
    if not files.exists(source):
        raise ValueError(f"{name}: there is no such file; it must be {_CHOICES}")
    try:
        yield from _objects(source)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _objects(source: str) -> Iterator[object]:
    """Yield the objects of a file: one a line, or all in one JSON array."""
    first = next((line for line in files.lines(source) if line.strip()), "")
    if first.lstrip().startswith("["):
        try:
            objects: list[object] = json.loads("".join(files.lines(source)))
        except (ValueError, RecursionError):
            pass  # the lines say what is wrong
        else:
            yield from objects
            return
    for number, line in enumerate(files.lines(source), start=1):
        if line.strip():
            try:
                row: object = json.loads(line)
            except (ValueError, RecursionError):
                raise ValueError(f"line {number} is not a JSON object") from None
            yield row


def _generated(name: str) -> Iterator[object]:
    try:
        library = import_module("reasoning_gym")
    except ImportError:
        raise ValueError(
            f"{name}: needs reasoning-gym: pip install reasoning-gym, or set "
            "env.data to a .jsonl file"
        ) from None
    dataset = library.create_dataset("gsm_symbolic", size=_GENERATED_COUNT, seed=0)
    return (dataset[index] for index in range(_GENERATED_COUNT))


def _from_hub(name: str, source: str, split: str) -> Iterable[object]:
    try:
        library: Any = import_module("datasets")
    except ImportError:
        raise ValueError(
            f"{name}: needs datasets: pip install datasets, or set env.data to a .jsonl file"
        ) from None
    try:
        with _offline_if_unreachable():
            library.disable_progress_bars()
            rows: Iterable[object] = library.load_dataset(
                source, "main" if source == GSM8K else None, split=split
            )
            return rows
    except Exception as error:
        if isinstance(error, ConnectionError):
            why = (
                "the Hugging Face hub cannot be reached, and this machine has no copy of such a "
                "data set, nor a file of this name"
            )
        else:
            why = (
                f"cannot be loaded from the Hugging Face hub ({' '.join(str(error).split())[:200]})"
            )
        raise ValueError(
            f"{name}: {why}; set env.data to a .jsonl file of questions and answers, or to "
            f"{GENERATED}"
        ) from None


@contextmanager
def _offline_if_unreachable() -> Iterator[None]:
    """Set the libraries offline if the hub does not answer.

    They use a copy on this machine at once then, instead of after a minute of retries.
    """
    constants: Any = import_module("huggingface_hub.constants")
    was_offline = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = was_offline or not _is_reachable(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = was_offline


def _is_reachable(address: str) -> bool:
    """Return whether a server answers, whatever its status."""
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=10).close()
    except HTTPError:
        return True
    except OSError:
        return False
    return True
