"""Which checkpoints are kept; the others are deleted."""

from __future__ import annotations

import math
import shutil
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rl_experiments.checkpoints.local import list_checkpoints, step_of
from rl_experiments.checkpoints.manifest import CorruptCheckpoint, Manifest, Metrics


@dataclass(frozen=True)
class RetentionPolicy:
    """The rules for keeping checkpoints; one that any of the rules names is kept."""

    latest: int = 2  # so many of the newest, at least one
    every: int | None = None  # those whose step is a multiple of this
    best: str | None = None  # the one with the greatest value of this metric; ties: the newest

    def kept(self, steps: Iterable[int], metrics: Mapping[int, Metrics]) -> set[int]:
        """Return the steps to keep; `metrics` holds those of each step, as far as known."""
        steps = sorted(steps)
        scores = {step: metrics.get(step, {}).get(self.best or "", math.nan) for step in steps}
        scored = [step for step in steps if not math.isnan(scores[step])]
        return {
            *steps[-max(1, self.latest) :],
            *(step for step in steps if self.every and step % self.every == 0),
            *sorted(scored, key=lambda step: (scores[step], step))[-1:],
        }


def prune(
    folder: str | Path, policy: RetentionPolicy, *, newest: int, held: Collection[int] = ()
) -> None:
    """Delete checkpoints up to step `newest` that the policy drops, except those in `held`.

    `held` are the steps still being uploaded. Checkpoints without a readable manifest go too.
    """
    checkpoints = {step_of(path): path for path in list_checkpoints(folder)}
    checkpoints = {step: path for step, path in checkpoints.items() if step <= newest}
    metrics = {}
    for step, path in checkpoints.items():
        with suppress(OSError, CorruptCheckpoint):
            metrics[step] = Manifest.read(path).metrics
    for step in checkpoints.keys() - policy.kept(metrics, metrics) - set(held):
        shutil.rmtree(checkpoints[step])
