"""Experiment trackers beside the run's own files: Weights & Biases, Trackio, TensorBoard."""
