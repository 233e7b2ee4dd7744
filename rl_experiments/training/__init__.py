"""Training: TRL's GRPO on episodes, from trajectories to optimizer steps."""
