"""Wordle as a text environment."""

from environments.wordle.env import Wordle

__all__ = ["Wordle"]
