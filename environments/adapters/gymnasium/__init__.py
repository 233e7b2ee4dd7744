"""Environments of Gymnasium whose observations and actions are texts or numbers."""

from environments.adapters.gymnasium.env import GymnasiumText

__all__ = ["GymnasiumText"]
