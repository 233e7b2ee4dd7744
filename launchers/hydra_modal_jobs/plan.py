"""What a launch would run and cost, from earlier runs of the same shape and from the timeouts."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.markup import escape
from rich.table import Table

from hydra_modal_jobs.errors import LaunchRefused
from hydra_modal_jobs.files import read_json
from hydra_modal_jobs.jobs.job import CONTROL, Job, labels, shape
from hydra_modal_jobs.manifest import name_of
from hydra_modal_jobs.prices import Prices

_NEWEST = 500  # results of earlier runs that are looked at


@dataclass(frozen=True)
class Estimate:
    """USD of a job: None where nothing is known. `seconds` is what such a job took."""

    job: Job
    per_hour: tuple[float | None, float | None]
    seconds: float | None
    low: float | None
    expected: float | None
    high: float | None

    @property
    def bound(self) -> float | None:
        """What the job is taken to cost: from experience, else the most it can."""
        return self.high if self.expected is None else self.expected


def estimate(jobs: Sequence[Job], prices: Prices) -> list[Estimate]:
    depths = {job.sweep_folder: name_of(job.sweep_folder).count("/") for job in jobs}
    folders = {folder.parents[depth] for folder, depth in depths.items()}
    taken = _durations(folders)
    return [_estimate(job, prices, taken.get(shape(job), [])) for job in jobs]


def _estimate(job: Job, prices: Prices, seconds: list[float]) -> Estimate:
    typical = statistics.median(seconds) if seconds else None
    if job.is_local:
        return Estimate(job, (0.0, 0.0), typical, 0.0, 0.0, 0.0)
    low, high = prices.per_hour(job.settings)
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


def _durations(folders: Iterable[Path]) -> dict[str, list[float]]:
    """Seconds of the finished jobs of earlier runs, by shape."""
    found = [path for folder in folders for path in folder.glob(f"*/**/{CONTROL}/result.json")]
    found.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    taken: dict[str, list[float]] = {}
    for path in found[:_NEWEST]:
        result = read_json(path)
        if result and result.get("state") == "done":
            taken.setdefault(result["shape"], []).append(result["seconds"])
    return taken


def table(estimates: Sequence[Estimate], prices: Prices) -> Table:
    paid = any(not each.job.is_local for each in estimates)
    plan = Table(box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    plan.title = "Plan" + (f" (USD, {prices.source})" if paid else "")
    plan.add_column("job", justify="right")
    plan.add_column("overrides", overflow="fold")
    plan.add_column("gpu", no_wrap=True)
    for name in ("per hour", "low", "expected", "high") if paid else ():
        plan.add_column(name, justify="right", no_wrap=True)
    plan.add_column("time", justify="right", no_wrap=True)
    names = labels([each.job for each in estimates])
    for each in estimates:
        costs = (_range(each.per_hour), *map(_usd, (each.low, each.expected, each.high)))
        row = [str(each.job.num), escape(names[each.job.num]), gpu_words(each.job)]
        plan.add_row(*row, *(costs if paid else ()), duration(each.seconds))
    if paid:
        sums = [_usd(_sum(getattr(e, name) for e in estimates)) for name in _COSTS]
        plan.add_section()
        plan.add_row("all", f"{len(estimates)} jobs", "", "", *sums, "", style="bold")
        plan.caption = (
            "low, expected: from earlier runs of this shape (- where there are none); "
            "high: every attempt until its timeout"
        )
        plan.caption_justify = "left"
    return plan


_COSTS = ("low", "expected", "high")


def refuse_above(estimates: Sequence[Estimate], cap: float, *, spent: float) -> None:
    """Refuse a launch whose cost is expected, or may have, to be above the cap."""
    bounds = [each.bound for each in estimates]
    if any(bound is None for bound in bounds):
        unknown = next(e for e in estimates if e.bound is None)
        raise LaunchRefused(
            f"hydra.launcher.max_usd={cap:g}: the price of {gpu_words(unknown.job)} is not known, "
            "so it cannot be held to; take another gpu or no cap"
        )
    total = spent + sum(bound for bound in bounds if bound is not None)
    if total > cap:
        known = all(each.expected is not None for each in estimates)
        why = "is expected to cost" if known else "may cost (with every attempt until its timeout)"
        raise LaunchRefused(
            f"hydra.launcher.max_usd={cap:g}: this {why} {total:.2f} USD; raise it, launch fewer "
            "jobs, or lower hydra.launcher.timeout or hydra.launcher.retries"
        )


def share(estimates: Sequence[Estimate], cap: float | None, *, spent: float) -> list[float | None]:
    """The part of the cap that each job may spend, in proportion to the most that it could."""
    if cap is None:
        return [None] * len(estimates)
    weights = [each.high or 0.0 for each in estimates]
    total = sum(weights)
    return [(cap - spent) * weight / total if total else None for weight in weights]


def gpu_words(job: Job) -> str:
    settings = job.settings
    if settings.gpu is None:
        return "none"
    kinds = "/".join([settings.gpu, *settings.gpu_fallback])
    return kinds if settings.gpu_count == 1 else f"{kinds}:{settings.gpu_count}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def _sum(values: Iterable[float | None]) -> float | None:
    found = list(values)
    return None if None in found else sum(value for value in found if value is not None)


def _usd(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _range(per_hour: tuple[float | None, float | None]) -> str:
    low, high = (_usd(value) for value in per_hour)
    return low if low == high else f"{low} to {high}"
