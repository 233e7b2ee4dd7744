"""Benchmarks of speed: rollouts, optimizer steps, environments, uploads, large sweeps."""
