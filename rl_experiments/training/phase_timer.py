"""Where the time of training goes: seconds of each phase, and how long the GPU stood idle."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from statistics import fmean

import torch

_POLL = 0.1  # seconds between looks at the GPU, which counts over about as long by itself


class Phases:
    """Seconds by phase. A phase within another is not counted in the outer one."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._stack: list[str] = []
        self._begun = self._mark = time.perf_counter()
        self._idle = _IdleGpu()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        self._turn()
        self._stack.append(phase)
        try:
            yield
        finally:
            self._turn()
            self._stack.pop()

    def take(self) -> dict[str, float]:
        """The figures since the last `take`: `time/PHASE`, `time/total`, `gpu/...`."""
        self._turn()
        figures = {f"time/{phase}": seconds for phase, seconds in self._seconds.items()}
        figures["time/total"] = self._mark - self._begun
        figures |= self._idle.take()
        if torch.cuda.is_available():
            figures["gpu/peak_gib"] = torch.cuda.max_memory_allocated() / (1 << 30)
            torch.cuda.reset_peak_memory_stats()
        self._begun = self._mark
        self._seconds.clear()
        return figures

    def _turn(self) -> None:
        """Give the time since the last turn to the phase that was on; its work is done then."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self._stack:
            self._seconds[self._stack[-1]] += now - self._mark
        self._mark = now


class _IdleGpu:
    """The share of the time in which no kernel ran, sampled from the driver (NVML)."""

    def __init__(self) -> None:
        self._busy: list[float] = []
        if torch.cuda.is_available():
            device = torch.cuda.current_device()
            threading.Thread(target=self._watch, args=(device,), daemon=True).start()

    def take(self) -> dict[str, float]:
        busy, self._busy = self._busy, []
        return {"gpu/idle": 1.0 - fmean(busy) / 100} if busy else {}

    def _watch(self, device: int) -> None:
        with suppress(Exception):  # a driver without NVML: no figure
            while True:
                self._busy.append(torch.cuda.utilization(device))
                time.sleep(_POLL)
