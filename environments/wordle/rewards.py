"""The parts of the reward of Wordle, each from 0 to 1, before their weights."""

from __future__ import annotations

from environments.wordle.game import SOLVED


def exact(marks: str) -> float:
    """Whether the word was found."""
    return float(marks == SOLVED)


def partial(marks: str) -> float:
    """0.2 a green letter and 0.1 a yellow one."""
    return (2 * marks.count("G") + marks.count("Y")) / 10


def turn_bonus(marks: str, *, turns: int) -> float:
    """The earlier the word was found the more."""
    return exact(marks) / (turns + 1)


def well_formed_share(well_formed: int, *, turns: int) -> float:
    """Of the replies, those that are in the format and nothing else."""
    return well_formed / turns if turns else 0.0
