"""What a launch would run and cost, from the timeouts and from earlier runs of equal jobs."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from hydra_modal_jobs.backends import backend_of
from hydra_modal_jobs.errors import LaunchRefused
from hydra_modal_jobs.jobs.job import Job, cost_key, gpu_label, labels
from hydra_modal_jobs.jobs.result import JobResult
from hydra_modal_jobs.manifest import run_name
from hydra_modal_jobs.paths import RESULT_FILE
from hydra_modal_jobs.prices import TABLE_DATE
from hydra_modal_jobs.tables import plain_table

_MAX_EARLIER_RESULTS = 500  # that are read, the newest first
_COSTS = ("low", "expected", "high")


@dataclass(frozen=True)
class Estimate:
    """What a job takes and costs, in USD; None where nothing is known.

    `per_hour` is the lowest and highest price. `seconds` is the median of earlier jobs. `high` is
    the cost of every attempt until its timeout.
    """

    job: Job
    per_hour: tuple[float | None, float | None]
    seconds: float | None
    low: float | None
    expected: float | None
    high: float | None

    @property
    def bound(self) -> float | None:
        """The cost to hold against a cap: from experience, else the highest possible."""
        return self.high if self.expected is None else self.expected


def estimate(jobs: Sequence[Job]) -> list[Estimate]:
    """Estimate each job, also from the runs that lie beside this one."""
    depths = {job.sweep_folder: run_name(job.sweep_folder).count("/") for job in jobs}
    roots = {folder.parents[depth] for folder, depth in depths.items()}
    durations = _earlier_durations(roots)
    return [_estimate(job, durations.get(cost_key(job), [])) for job in jobs]


def _estimate(job: Job, seconds: list[float]) -> Estimate:
    low, high = backend_of(job.settings).usd_per_hour(job.settings)
    typical = statistics.median(seconds) if seconds else None
    if high == 0.0:
        return Estimate(job, (low, high), typical, 0.0, 0.0, 0.0)
    attempts = 1 + job.settings.retries
    return Estimate(
        job,
        (low, high),
        typical,
        _cost(low, min(seconds, default=None)),
        _cost(high, typical),
        _cost(high, attempts * job.settings.timeout),
    )


def _cost(per_hour: float | None, seconds: float | None) -> float | None:
    return None if per_hour is None or seconds is None else per_hour * seconds / 3600


def _earlier_durations(roots: Iterable[Path]) -> dict[str, list[float]]:
    """Return the seconds of the finished jobs of earlier runs, by `cost_key`."""
    files = [path for root in roots for path in root.glob(f"*/**/{RESULT_FILE}")]
    files.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    durations: dict[str, list[float]] = {}
    for path in files[:_MAX_EARLIER_RESULTS]:
        result = JobResult.read(path.parents[1])
        if result and result.is_done and result.seconds is not None:
            durations.setdefault(result.cost_key, []).append(result.seconds)
    return durations


def plan_table(estimates: Sequence[Estimate], *, later_count: int = 0) -> Table:
    """Return the table of the jobs, with prices if any of them costs anything.

    The sweeper will make `later_count` more, each of which is taken to cost what the dearest of
    these does.
    """
    has_costs = any(each.per_hour[1] != 0.0 for each in estimates)
    plan = plain_table("Plan" + (f" (USD, list prices of {TABLE_DATE})" if has_costs else ""))
    plan.add_column("job", justify="right")
    plan.add_column("overrides", overflow="fold")
    plan.add_column("gpu", no_wrap=True)
    for name in ("per hour", *_COSTS) if has_costs else ():
        plan.add_column(name, justify="right", no_wrap=True)
    plan.add_column("time", justify="right", no_wrap=True)
    names = labels([each.job for each in estimates])
    for each in estimates:
        costs = (_range(each.per_hour), *map(_usd, (each.low, each.expected, each.high)))
        row = [str(each.job.num), names[each.job.num], gpu_label(each.job)]
        plan.add_row(*row, *(costs if has_costs else ()), duration(each.seconds))
    if later_count:
        later = ["", *(_usd(_later(estimates, name, later_count)) for name in _COSTS)]
        note = f"{later_count} more, that the sweeper chooses later"
        plan.add_row("...", note, "", *(later if has_costs else ()), "")
    if has_costs:
        sums = [
            _usd(
                _sum([*(getattr(e, name) for e in estimates), _later(estimates, name, later_count)])
            )
            for name in _COSTS
        ]
        count = len(estimates) + later_count
        plan.add_section()
        plan.add_row("all", f"{count} jobs", "", "", *sums, "", style="bold")
        plan.caption = (
            "low, expected: from earlier runs of this shape (- where there are none); "
            "high: every attempt until its timeout"
        )
        plan.caption_justify = "left"
    return plan


def refuse_above(
    estimates: Sequence[Estimate], cap: float, *, spent: float, later_count: int = 0
) -> None:
    """Refuse a launch that should cost, or could cost, more USD than the cap, less `spent`.

    `later_count` is that of `plan_table`.
    """
    unknown = next((each for each in estimates if each.bound is None), None)
    if unknown is not None:
        raise LaunchRefused(
            f"hydra.launcher.max_usd={cap:g}: the price of {gpu_label(unknown.job)} is not known, "
            "so the launch cannot be held to it; take another gpu or no cap"
        )
    bounds = [each.bound for each in estimates if each.bound is not None]
    total = spent + sum(bounds) + later_count * max(bounds, default=0.0)
    if total > cap:
        is_known = all(each.expected is not None for each in estimates)
        at_most = "may cost (with every attempt until its timeout)"
        cost = "is expected to cost" if is_known else at_most
        raise LaunchRefused(
            f"hydra.launcher.max_usd={cap:g}: this {cost} {total:.2f} USD; raise it, launch fewer "
            "jobs, or lower hydra.launcher.timeout or hydra.launcher.retries"
        )


def shares(
    estimates: Sequence[Estimate], cap: float | None, *, spent: float, later_count: int = 0
) -> list[float | None]:
    """Return the USD that each job may spend of the cap, in proportion to its highest cost.

    The `later_count` jobs of `plan_table` have their part too.
    """
    if cap is None:
        return [None] * len(estimates)
    weights = [each.high or 0.0 for each in estimates]
    total = sum(weights) + later_count * max(weights, default=0.0)
    return [(cap - spent) * weight / total if total else None for weight in weights]


def duration(seconds: float | None) -> str:
    """Return a duration in seconds, minutes or hours.

    >>> duration(99), duration(600), duration(7200)
    ('99 s', '10 min', '2.0 h')
    """
    if seconds is None:
        return "-"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def _later(estimates: Sequence[Estimate], name: str, count: int) -> float | None:
    """Return the cost of `count` jobs, each as dear as the dearest; None if one is not known."""
    if not count:
        return 0.0
    costs = [getattr(each, name) for each in estimates]
    return None if None in costs else count * float(max(costs, default=0.0))


def _sum(values: Iterable[float | None]) -> float | None:
    """Return the sum, or None if a value is not known."""
    total = 0.0
    for value in values:
        if value is None:
            return None
        total += value
    return total


def _usd(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _range(per_hour: tuple[float | None, float | None]) -> str:
    low, high = (_usd(value) for value in per_hour)
    return low if low == high else f"{low} to {high}"
