"""`python -m hydra_modal_jobs runs ...`, for applications without such a command."""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> None:
    # Here, since Hydra imports this module in every application when it looks for plugins.
    from hydra.errors import CompactHydraException

    from hydra_modal_jobs import run_commands as _runs

    verb, *words = sys.argv[1:] or ["help"]
    root = Path("multirun")
    for word in [word for word in words if word.startswith("--root=")]:
        words.remove(word)
        root = Path(word.removeprefix("--root="))
    try:
        if verb == "runs":
            _runs.runs(words, root=root)
        elif verb == "resume":
            _runs.resume(words, root=root)
        else:
            usage = [*_runs.USAGE.values(), "resume RUN: run again what did not finish"]
            sys.exit("\n".join([*usage, "--root=FOLDER: where runs are (multirun)"]))
    except CompactHydraException as error:
        sys.exit(str(error))
    except KeyboardInterrupt as stop:
        print(stop, file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
