"""Models: loading them, making the tiny one, and planning how they share the GPU's memory."""
