"""Benchmarks of faults: kills, preemptions, stale weights, arbitrary replies."""
