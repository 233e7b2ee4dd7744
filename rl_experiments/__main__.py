"""`python -m rl_experiments`."""

import sys

if __name__ == "__main__":
    try:
        from rl_experiments.cli import main

        main()
    except KeyboardInterrupt:  # while the imports were going on
        sys.exit(130)
