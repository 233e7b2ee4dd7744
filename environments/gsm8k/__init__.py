"""Grade school arithmetic in words: GSM8K, questions from a file, or generated questions."""

from environments.gsm8k.env import Gsm8k

__all__ = ["Gsm8k"]
