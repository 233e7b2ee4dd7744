"""The parts of the reward of Wordle, each from 0 to 1, without their weights."""

from __future__ import annotations

from environments.wordle.game import SOLVED


def exact(marks: str) -> float:
    """Return 1 if the guess is the secret, else 0."""
    return float(marks == SOLVED)


def partial(marks: str) -> float:
    """Return 0.2 for each green letter and 0.1 for each yellow one."""
    return (2 * marks.count("G") + marks.count("Y")) / 10


def turn_bonus(marks: str, *, turns: int) -> float:
    """Return more for fewer turns if the guess is the secret, else 0."""
    return exact(marks) / (turns + 1)


def well_formed_share(well_formed: int, *, turns: int) -> float:
    """Return the share of the replies that were in the format."""
    return well_formed / turns if turns else 0.0
