"""Environments of other libraries; a library is imported when its adapter is first made."""

from environments.adapters.gymnasium import GymnasiumText
from environments.adapters.reasoning_gym import ReasoningGym
from environments.adapters.textarena import TextArena

__all__ = ["GymnasiumText", "ReasoningGym", "TextArena"]
