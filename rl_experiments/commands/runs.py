"""The verbs `runs` and `resume`: the launcher's commands on what was launched from here."""

from __future__ import annotations

from collections.abc import Sequence

from rl_experiments.paths import RUNS

# Modules as the run folders of earlier versions name them, and their present names.
FORMER_NAMES = {
    "rl_experiments.train": "rl_experiments.commands.train",
    "rl_experiments.evaluate": "rl_experiments.commands.evaluate",
    "rl_experiments.check": "rl_experiments.preflight",
    "rl_experiments.schema": "rl_experiments.config.schema",
}


def runs(words: Sequence[str]) -> None:
    """List the runs, or `runs attach|logs|cancel|pull RUN ...`."""
    import hydra_modal_jobs

    words = [] if list(words) in (["list"], ["ls"]) else words
    hydra_modal_jobs.runs(words, root=RUNS)


def resume(words: Sequence[str]) -> None:
    """Go on with the jobs that did not finish: `resume RUN [SETTING=VALUE ...] [--trust]`."""
    import hydra_modal_jobs

    hydra_modal_jobs.resume(words, root=RUNS, former_names=FORMER_NAMES)
