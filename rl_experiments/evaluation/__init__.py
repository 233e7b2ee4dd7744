"""Evaluation: several policies play the same unseen seeds, and what comes of it is compared."""
