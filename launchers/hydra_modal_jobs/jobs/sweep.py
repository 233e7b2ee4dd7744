"""The whole of a sweep, of which a sweeper may launch one batch after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

_BASIC = f"{BasicSweeper.__module__}.{BasicSweeper.__qualname__}"
# Where the sweepers of Hydra's own repository (Optuna, Ax, Nevergrad) say how many jobs they make.
_TOTALS = ("n_trials", "ax_config.max_trials", "optim.budget")


@dataclass(frozen=True)
class Sweep:
    """What follows a batch: jobs whose overrides are known, or a number of jobs that are not.

    `needs_values` if the sweeper chooses jobs by the values of those before.
    """

    later: list[list[str]]
    later_count: int
    needs_values: bool
    sweeper: str


def sweep_of(master: DictConfig, batch: Sequence[Sequence[str]], *, first_number: int) -> Sweep:
    """Return the sweep that `master` asks for, seen from a batch of it."""
    target = str(OmegaConf.select(master, "hydra.sweeper._target_"))
    name = target.rpartition(".")[2]
    end = first_number + len(batch)
    if target == _BASIC:
        every = _overrides_of_all(master)
        is_as_expected = every[first_number:end] == [list(overrides) for overrides in batch]
        later = every[end:] if is_as_expected else []
        return Sweep(later, len(later), needs_values=False, sweeper=name)
    totals = (OmegaConf.select(master, f"hydra.sweeper.{path}") for path in _TOTALS)
    total = next((total for total in totals if isinstance(total, int)), end)
    return Sweep([], max(0, total - end), needs_values=True, sweeper=name)


def _overrides_of_all(master: DictConfig) -> list[list[str]]:
    """Return the overrides of every job, as Hydra's basic sweeper makes them."""
    params = OmegaConf.select(master, "hydra.sweeper.params") or {}
    words = [f"{key}={value}" for key, value in params.items()]
    words += map(str, master.hydra.overrides.task)
    try:
        parsed = OverridesParser.create().parse_overrides(words)
        return BasicSweeper.split_arguments(parsed, None)[0]
    except HydraException:
        return []
