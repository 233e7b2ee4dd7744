"""Reinforcement learning for language models, composed on the command line."""
