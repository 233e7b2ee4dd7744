"""The rules of Wordle: the marks of a guess, and the words that the marks leave possible."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

LENGTH = 5
SOLVED = "G" * LENGTH

Words = tuple[str, ...]
Board = tuple[tuple[str, str], ...]  # the guesses so far, each with its marks


def feedback(secret: str, guess: str) -> str:
    """Return a mark for each letter of a guess: G (green), Y (yellow) or X (neither).

    A green letter is in its place. Then, from the left, a letter is yellow if the secret has a copy
    of it that no green or earlier yellow letter has used.

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


@lru_cache(maxsize=4096)  # a new guess only adds a last step to the recursion
def consistent(words: Words, board: Board) -> Words:
    """Return the words that would give every guess on the board its marks."""
    if not board:
        return words
    guess, marks = board[-1]
    return tuple(w for w in consistent(words, board[:-1]) if feedback(w, guess) == marks)


def render(board: Sequence[tuple[str, str]]) -> str:
    """Return a line of text for each guess.

    >>> render([("babbb", "YYGXX")])
    'b=Y a=Y b=G b=X b=X'
    """
    return "\n".join(
        " ".join(f"{letter}={mark}" for letter, mark in zip(guess, marks, strict=True))
        for guess, marks in board
    )
