"""`python -m rl_experiments`."""

from rl_experiments.cli import main

if __name__ == "__main__":
    main()
