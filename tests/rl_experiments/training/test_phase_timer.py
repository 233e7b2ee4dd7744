"""The seconds of each phase; no assertion depends on how fast the machine is."""

from __future__ import annotations

import pytest

from rl_experiments.training import phase_timer
from rl_experiments.training.phase_timer import PhaseTimer


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock whose time is set by the test: the number in the list."""
    time = [0.0]
    monkeypatch.setattr(phase_timer.time, "perf_counter", lambda: time[0])
    return time


def test_a_nested_phase_does_not_count_in_the_outer_one(clock: list[float]) -> None:
    timer = PhaseTimer()
    clock[0] = 1.0
    with timer.phase("generation"):
        clock[0] = 3.0
        with timer.phase("judge"):
            clock[0] = 10.0
        clock[0] = 11.0
    clock[0] = 15.0
    metrics = timer.take()
    assert metrics["time/generation"] == 3.0 and metrics["time/judge"] == 7.0
    assert metrics["time/total"] == 15.0


def test_each_period_starts_at_zero(clock: list[float]) -> None:
    timer = PhaseTimer()
    with timer.phase("loss"):
        clock[0] = 5.0
        assert timer.take()["time/loss"] == 5.0
        clock[0] = 7.0
    metrics = timer.take()
    assert (metrics["time/loss"], metrics["time/total"]) == (2.0, 2.0)
    assert "time/loss" not in timer.take()
