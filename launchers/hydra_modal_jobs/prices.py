"""Modal's GPUs: how many a container may have, and what a job costs an hour, by a dated list."""

from __future__ import annotations

from hydra_modal_jobs.config import ModalJobsConf

TABLE_DATE = "2026-09-24"
# USD per second, as quoted in public repositories at that date.
_GPU_USD = {
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
GPUS = (*_GPU_USD, *_ALIASES)  # all names, in capitals
_MAX_COUNTS = {"A10": 4}  # in a container
_MAX_COUNT = 8  # of the others
_CORE_USD = 0.0000131  # per second of a physical core
_GIB_USD = 0.00000222  # per second of a GiB of memory
_MIN_CORES = 0.125  # billed even if less is used
_MIN_GIB = 0.125
_BROAD_REGIONS = ("us", "eu", "ap", "uk", "ca", "me", "sa", "af", "mx", "jp", "au")
_BROAD_REGION_FACTOR, _NARROW_REGION_FACTOR = 1.5, 1.75


def usd_per_hour(settings: ModalJobsConf) -> tuple[float | None, float | None]:
    """Return the lowest and highest USD per hour, since the GPU may be one of the fallbacks.

    The lowest is None if no GPU has a known price, the highest if any has none.
    """
    cores = max(settings.cpu or 0.0, _MIN_CORES)
    gib = max((settings.memory or 0) / 1024, _MIN_GIB)
    cpu_and_memory = cores * _CORE_USD + gib * _GIB_USD
    kinds = [settings.gpu, *settings.gpu_fallback] if settings.gpu else []
    prices = [_gpu_usd(kind) for kind in kinds if kind] or [0.0]
    factor = 3600 * _region_factor(settings)
    totals = [
        None if price is None else (price * settings.gpu_count + cpu_and_memory) * factor
        for price in prices
    ]
    known = [total for total in totals if total is not None]
    return min(known, default=None), None if None in totals else max(known, default=None)


def max_gpu_count(name: str) -> int:
    """Return how many GPUs of this kind a container may have."""
    return _MAX_COUNTS.get(_ALIASES.get(name.upper(), name.upper()), _MAX_COUNT)


def _gpu_usd(name: str) -> float | None:
    kind = name.upper().partition(":")[0]
    return _GPU_USD.get(_ALIASES.get(kind, kind))


def _region_factor(settings: ModalJobsConf) -> float:
    if not settings.region:
        return 1.0
    is_broad = settings.region.lower() in _BROAD_REGIONS
    return _BROAD_REGION_FACTOR if is_broad else _NARROW_REGION_FACTOR
