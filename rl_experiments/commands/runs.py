"""The verbs `runs` and `resume`: the launcher's commands on what was launched from here."""

from __future__ import annotations

from collections.abc import Sequence

from rl_experiments.paths import RUNS


def runs(words: Sequence[str]) -> None:
    """List the runs, or `runs attach|logs|cancel|pull RUN ...`."""
    from hydra_modal_jobs import run_commands

    run_commands.runs(words, root=RUNS)


def resume(words: Sequence[str]) -> None:
    """Go on with the jobs of a run that did not finish: `resume RUN [SETTING=VALUE ...]`."""
    from hydra_modal_jobs import run_commands

    run_commands.resume(words, root=RUNS)
