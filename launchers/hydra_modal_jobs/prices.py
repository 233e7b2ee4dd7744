"""What a job costs an hour: the workspace's own rates, else a dated table."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from hydra_modal_jobs.config import ModalJobsConf

TABLE_DATE = "2026-09-24"
# USD per second, as quoted in public repositories at that date.
_GPU = {
    "T4": 0.000164,
    "L4": 0.000222,
    "A10": 0.000306,
    "L40S": 0.000542,
    "A100-40GB": 0.000583,
    "A100-80GB": 0.000694,
    "RTX-PRO-6000": 0.000842,
    "H100": 0.001097,
    "H200": 0.001261,
    "B200": 0.001736,
}
_ALIASES = {"A10G": "A10", "A100": "A100-40GB", "H100!": "H100", "B200+": "B200"}
_CORE = 0.0000131  # a physical core
_GIB = 0.00000222
_LEAST_CORES = 0.125
_LEAST_GIB = 0.125
_BROAD_REGIONS = ("us", "eu", "ap", "uk", "ca", "me", "sa", "af", "mx", "jp", "au")
_BROAD, _NARROW = 1.5, 1.75

_PATIENCE = 5.0  # seconds


@dataclass(frozen=True)
class Prices:
    """USD per second of each resource, and whose figures these are."""

    gpu: Mapping[str, float]
    core: float
    gib: float
    source: str

    def per_hour(self, settings: ModalJobsConf) -> tuple[float | None, float | None]:
        """Least and most, as the GPU may be a fallback; None where a GPU has no known price."""
        cores = max(settings.cpu or 0.0, _LEAST_CORES)
        gib = max((settings.memory or 0) / 1024, _LEAST_GIB)
        rest = cores * self.core + gib * self.gib
        kinds = [settings.gpu, *settings.gpu_fallback] if settings.gpu else []
        gpus = [self._gpu(kind) for kind in kinds if kind] or [0.0]
        totals = [
            None if gpu is None else (gpu * settings.gpu_count + rest) * 3600 * _region(settings)
            for gpu in gpus
        ]
        known = [total for total in totals if total is not None]
        return min(known, default=None), None if None in totals else max(known, default=None)

    def _gpu(self, name: str) -> float | None:
        kind = name.upper().partition(":")[0]
        return self.gpu.get(_ALIASES.get(kind, kind))


TABLE = Prices(_GPU, _CORE, _GIB, f"list prices of {TABLE_DATE}")


def live() -> Prices:
    """The workspace's rates where it answers and they are understood, else the table.

    The keys of the rates are documented nowhere: one counts if it names the resource and its
    figure, taken as USD per second or per hour, is of the order of the table's.
    """
    try:
        import modal

        from hydra_modal_jobs.backends.modal_app import within

        said = within(_PATIENCE, lambda: modal.Workspace.from_context().billing.rates())
        rates = {name: float(rate) for name, rate in said.items()}
    except Exception:  # no account, no network, an older server: the table says its date
        return TABLE
    gpu = {name: _find(rates, name, price) for name, price in _GPU.items()}
    found = {name: price for name, price in gpu.items() if price is not None}
    if not found:
        return TABLE
    core, gib = _find(rates, "cpu", _CORE), _find(rates, "memory", _GIB)
    partly = "" if len(found) == len(_GPU) and core and gib else f" ({TABLE_DATE} for the rest)"
    return Prices(
        {**_GPU, **found}, core or _CORE, gib or _GIB, f"this workspace's rates now{partly}"
    )


def _find(rates: Mapping[str, float], name: str, listed: float) -> float | None:
    wanted = set(re.findall(r"[a-z]+|\d+", name.lower()))
    for key, value in rates.items():
        if wanted <= set(re.findall(r"[a-z]+|\d+", key.lower())):
            for second in (value, value / 3600):
                if listed / 4 < second < listed * 4:
                    return second
    return None


def _region(settings: ModalJobsConf) -> float:
    if not settings.region:
        return 1.0
    return _BROAD if settings.region.lower() in _BROAD_REGIONS else _NARROW
