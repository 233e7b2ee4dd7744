"""Where the time of training goes: seconds of each phase, and how long the GPU was idle."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from statistics import fmean

import torch

# NVML itself averages the utilisation over a window of similar length.
_GPU_POLL_SECONDS = 0.1


class PhaseTimer:
    """Measures the seconds of each phase; the time of a nested phase does not count in the outer.

    On a GPU the start and the end of a phase wait for the kernels that were queued before. `clock`
    returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._running: list[str] = []  # names of the phases, the innermost last
        self._period_start = self._last_change = clock()
        self._idle_gpu = _IdleGpuSampler()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time of the `with` block, less that of phases inside it, as this phase's."""
        self._charge_running_phase()
        self._running.append(name)
        try:
            yield
        finally:
            self._charge_running_phase()
            self._running.pop()

    def take(self) -> dict[str, float]:
        """Return the metrics since the last call: `time/PHASE` and `time/total` (s), `gpu/...`."""
        self._charge_running_phase()
        metrics = {f"time/{phase}": seconds for phase, seconds in self._seconds.items()}
        metrics["time/total"] = self._last_change - self._period_start
        metrics |= self._idle_gpu.take()
        if torch.cuda.is_available():
            metrics["gpu/peak_gib"] = torch.cuda.max_memory_allocated() / (1 << 30)
            torch.cuda.reset_peak_memory_stats()
        self._period_start = self._last_change
        self._seconds.clear()
        return metrics

    def _charge_running_phase(self) -> None:
        """Add the time since the last change of phase to the innermost running phase."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = self._clock()
        if self._running:
            self._seconds[self._running[-1]] += now - self._last_change
        self._last_change = now


class _IdleGpuSampler:
    """Samples the share of time in which the GPU ran no kernel, as its driver (NVML) reports it."""

    def __init__(self) -> None:
        self._busy_percent: list[float] = []
        if torch.cuda.is_available():
            device = torch.cuda.current_device()
            threading.Thread(target=self._poll, args=(device,), daemon=True).start()

    def take(self) -> dict[str, float]:
        """Return `gpu/idle`, a share from 0 to 1, since the last call; empty without samples."""
        busy_percent, self._busy_percent = self._busy_percent, []
        return {"gpu/idle": 1.0 - fmean(busy_percent) / 100} if busy_percent else {}

    def _poll(self, device: int) -> None:
        with suppress(Exception):  # without NVML there is no metric
            while True:
                self._busy_percent.append(torch.cuda.utilization(device))
                time.sleep(_GPU_POLL_SECONDS)
