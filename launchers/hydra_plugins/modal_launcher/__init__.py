"""A Hydra launcher: each job of a sweep in a Modal container of its own, or in this process."""
