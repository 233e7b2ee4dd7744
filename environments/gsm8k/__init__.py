"""Grade school arithmetic in words: GSM8K, questions of one's own, or made-up ones."""

from environments.gsm8k.env import Gsm8k

__all__ = ["Gsm8k"]
