"""The command `python -m hydra_modal_jobs`, for applications without verbs of their own."""

from __future__ import annotations

import sys
from pathlib import Path

from hydra.errors import CompactHydraException

from hydra_modal_jobs import run_commands
from hydra_modal_jobs.text import print_line, printable


def main() -> None:
    """Run one of `runs ...` and `resume ...`; anything else prints how they are used."""
    verb, *words = sys.argv[1:] or ["help"]
    root = Path("multirun")
    for word in [word for word in words if word.startswith("--root=")]:
        words.remove(word)
        root = Path(word.removeprefix("--root="))
    try:
        if verb == "runs":
            run_commands.runs(words, root=root)
        elif verb == "resume":
            run_commands.resume(words, root=root)
        else:
            usage = run_commands.USAGE.values()
            sys.exit("\n".join([*usage, "--root=FOLDER: the folder of the runs (multirun)"]))
    except CompactHydraException as error:
        sys.exit(printable(str(error)))
    except KeyboardInterrupt as stop:
        print_line(str(stop), is_error=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
