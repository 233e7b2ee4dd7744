"""Run the command line as `python -m rl_experiments`."""

import sys

if __name__ == "__main__":
    try:
        from rl_experiments.cli import main

        main()
    except KeyboardInterrupt:  # Ctrl-C while modules are imported, before `main` can handle it
        sys.exit(130)
