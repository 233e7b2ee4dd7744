"""The words: lists that come with the environment or a file, and which of them are held out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from random import Random

from environments.wordle.game import LENGTH, Words

_FOLDER = Path(__file__).parent / "words"
PRESETS = tuple(sorted(file.stem for file in _FOLDER.glob("*.txt")))

_WORD = re.compile(rf"[a-z]{{{LENGTH}}}")


@dataclass(frozen=True)
class WordList:
    """All words, and the secrets of training and of evaluation in the order of their episodes."""

    words: Words
    known: frozenset[str]
    training: Words
    evaluation: Words


@lru_cache(maxsize=16)
def word_list(source: str, held_out: float) -> WordList:
    """A preset or a file, with so large a share of its words held out for evaluation.

    With a share of 0 both have all words.
    """
    words = _read(source)
    shuffled = list(words)
    Random("wordle").shuffle(shuffled)
    training = evaluation = tuple(shuffled)
    if held_out:
        training = tuple(word for word in shuffled if not _is_held_out(word, held_out))
        evaluation = tuple(word for word in shuffled if _is_held_out(word, held_out))
        if not training or not evaluation:
            raise ValueError(
                f"env.held_out={held_out}: must be a share that leaves words for training and for "
                f"evaluation; {source} has {len(words)} (0: the same words for both)"
            )
    return WordList(words, frozenset(words), training, evaluation)


def _is_held_out(word: str, share: float) -> bool:
    """By the word alone, so that it stays on its side in any list."""
    return int.from_bytes(sha256(word.encode()).digest()[:8]) < share * 2**64


def _read(source: str) -> Words:
    path = _FOLDER / f"{source}.txt" if source in PRESETS else Path(source)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError):  # ValueError: no text, or no path
        choices = ", ".join(PRESETS)
        raise ValueError(
            f"env.words={source}: must be {choices}, or a text file with one word a line"
        ) from None
    words: dict[str, None] = {}
    for number, line in enumerate(lines, start=1):
        word = line.strip().lower()
        if not word:
            continue
        if not _WORD.fullmatch(word) or word in words:
            what = "twice in the list" if word in words else f"no word of {LENGTH} letters a to z"
            raise ValueError(f"env.words={source}: line {number}, {word[:20]!r}, is {what}")
        words[word] = None
    if len(words) < 2:
        raise ValueError(f"env.words={source}: must be a file of two words or more")
    return tuple(words)
