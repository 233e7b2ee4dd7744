"""Checkpoints of a run: complete or absent, kept by rules, copied to a store, found again."""
