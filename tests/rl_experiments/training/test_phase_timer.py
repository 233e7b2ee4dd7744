"""The seconds of each phase; no assertion depends on how fast the machine is."""

from __future__ import annotations

from rl_experiments.training.phase_timer import PhaseTimer


class Clock:
    """A clock that shows what the test has set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_nested_phase_does_not_count_in_the_outer_one() -> None:
    clock = Clock()
    timer = PhaseTimer(clock)
    clock.now = 1.0
    with timer.phase("generation"):
        clock.now = 3.0
        with timer.phase("judge"):
            clock.now = 10.0
        clock.now = 11.0
    clock.now = 15.0
    metrics = timer.take()
    assert metrics["time/generation"] == 3.0 and metrics["time/judge"] == 7.0
    assert metrics["time/total"] == 15.0


def test_each_period_starts_at_zero() -> None:
    clock = Clock()
    timer = PhaseTimer(clock)
    with timer.phase("loss"):
        clock.now = 5.0
        assert timer.take()["time/loss"] == 5.0
        clock.now = 7.0
    metrics = timer.take()
    assert (metrics["time/loss"], metrics["time/total"]) == (2.0, 2.0)
    assert "time/loss" not in timer.take()
