"""A limit that only a hang exceeds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

HANG_SECONDS = 120.0


@contextmanager
def no_hang() -> Iterator[None]:
    """Fail if the body takes minutes of processor time, as a quadratic pattern would.

    `benchmarks.resilience.fuzz` measures how long replies take.
    """
    started = time.thread_time()
    yield
    assert time.thread_time() - started < HANG_SECONDS
