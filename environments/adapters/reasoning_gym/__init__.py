"""Datasets of reasoning-gym: a question, and one reply that the dataset scores."""

from environments.adapters.reasoning_gym.env import ReasoningGym

__all__ = ["ReasoningGym"]
