"""Benchmarks of learning: whether training raises the reward, whatever the seed."""
