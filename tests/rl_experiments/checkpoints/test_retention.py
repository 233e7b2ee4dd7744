"""Which checkpoints are kept."""

from __future__ import annotations

from pathlib import Path

from rl_experiments.checkpoints.retention import RetentionPolicy, prune
from tests.support.stores import make_checkpoint

NAN = float("nan")


def test_rules_for_keeping_checkpoints() -> None:
    rewards = [3, 9, 2, 9, 1]
    scores = {step: {"val/reward": float(score)} for step, score in enumerate(rewards, 1)}
    assert RetentionPolicy(2).kept(range(1, 7), {}) == {5, 6}
    assert RetentionPolicy(1, every=3).kept(range(1, 8), {}) == {3, 6, 7}
    assert RetentionPolicy(1, best="val/reward").kept(range(1, 7), scores) == {4, 6}
    assert RetentionPolicy(1, best="val/reward").kept([1, 2], {1: {"val/reward": NAN}}) == {2}
    assert RetentionPolicy(0).kept([1], {}) == {1}
    assert RetentionPolicy().kept([], {}) == set()


def test_old_checkpoints_are_deleted_but_not_those_being_uploaded(tmp_path: Path) -> None:
    for step in range(1, 6):
        make_checkpoint(tmp_path, step, size=10)
    (tmp_path / "checkpoint-3" / "manifest.json").unlink()  # it was never finished
    prune(tmp_path, RetentionPolicy(1), newest=4, held={1})
    # Step 5 is after the newest: a run that was set back overwrites it.
    assert sorted(path.name[-1] for path in tmp_path.iterdir()) == ["1", "4", "5"]
