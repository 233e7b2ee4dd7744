"""The rules of Wordle: what a guess is answered, and which words are still possible."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

LENGTH = 5
SOLVED = "G" * LENGTH

Words = tuple[str, ...]
Board = tuple[tuple[str, str], ...]  # the guesses so far, each with its feedback


def feedback(secret: str, guess: str) -> str:
    """A mark for each letter of the guess: G in its place, Y elsewhere in the secret, X neither.

    Greens count first; then, from the left, a letter is yellow while the secret has copies left.

    >>> feedback("abbey", "babbb")
    'YYGXX'
    """
    left = [s for s, g in zip(secret, guess, strict=True) if s != g]
    marks = ""
    for s, g in zip(secret, guess, strict=True):
        if s == g:
            marks += "G"
        elif g in left:
            left.remove(g)
            marks += "Y"
        else:
            marks += "X"
    return marks


@lru_cache(maxsize=4096)  # a guess changes only the last step
def consistent(words: Words, board: Board) -> Words:
    """The words that would have had the guesses answered as they were."""
    if not board:
        return words
    guess, marks = board[-1]
    return tuple(w for w in consistent(words, board[:-1]) if feedback(w, guess) == marks)


def render(board: Sequence[tuple[str, str]]) -> str:
    """A line for each guess.

    >>> render([("babbb", "YYGXX")])
    'b=Y a=Y b=G b=X b=X'
    """
    return "\n".join(
        " ".join(f"{letter}={mark}" for letter, mark in zip(guess, marks, strict=True))
        for guess, marks in board
    )
