"""The word lists, from this folder or from a file, and which words are held out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from random import Random

from environments import files
from environments.wordle.game import LENGTH, Words

_FOLDER = Path(__file__).parent / "words"
PRESETS = tuple(sorted(file.stem for file in _FOLDER.glob("*.txt")))

_WORD = re.compile(rf"[a-z]{{{LENGTH}}}")


@dataclass(frozen=True)
class WordList:
    """The words that may be guessed, and the secrets in the order of their episodes."""

    words: Words
    known: frozenset[str]  # the same words, for look-ups
    training: Words
    evaluation: Words


@lru_cache(maxsize=16)
def word_list(source: str, held_out: float) -> WordList:
    """Return a preset list or that of a file, with a share of its words held out for evaluation.

    With a share of 0, training and evaluation both have all words. Raises `ValueError` if the list
    cannot be read, or if training or evaluation would have no words.
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
    """Return whether a word is held out; it depends on the word alone, whatever the list."""
    return int.from_bytes(sha256(word.encode()).digest()[:8]) < share * 2**64


def _read(source: str) -> Words:
    choices = f"{', '.join(PRESETS)}, or a text file with one word a line"
    path = str(_FOLDER / f"{source}.txt") if source in PRESETS else source
    if not files.exists(path):
        raise ValueError(f"env.words={source}: must be {choices}; there is no such file")
    try:
        lines = list(files.lines(path))
    except ValueError as error:
        raise ValueError(f"env.words={source}: must be {choices}; {error}") from None
    words: dict[str, None] = {}
    for number, line in enumerate(lines, start=1):
        word = line.strip().lower()
        if not word:
            continue
        if not _WORD.fullmatch(word) or word in words:
            problem = "a repetition" if word in words else f"not {LENGTH} letters from a to z"
            raise ValueError(f"env.words={source}: line {number}, {word[:20]!r}, is {problem}")
        words[word] = None
    if len(words) < 2:
        raise ValueError(f"env.words={source}: must be a file with two words or more")
    return tuple(words)
