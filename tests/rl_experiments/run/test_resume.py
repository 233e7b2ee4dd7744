"""What may differ between a run and its resumption."""

from __future__ import annotations

from pathlib import Path

import pytest

from rl_experiments.errors import UserError
from rl_experiments.run.resume import changes_that_forbid_resume, refuse_changes

BEFORE = {
    "seed": 0,
    "resume": False,
    "trainer": {"max_steps": 4, "learning_rate": 1e-3},
    "gpu": {"type": "local", "count": 1},
    "model": {"base_url": None, "timeout": 120.0},
    "checkpoint": {"path": None, "store": None},
    "logger": {"project": "one"},
}


def test_settings_that_do_not_touch_what_was_computed_may_change() -> None:
    now = {
        **BEFORE,
        "resume": True,
        "trainer": {"max_steps": 8, "learning_rate": 1e-3},
        "gpu": {"type": "H100", "count": 1},
        "model": {"base_url": None, "timeout": 10.0},
        "checkpoint": {"path": None, "store": "s3://bucket"},
        "logger": {"project": "two", "entity": "us"},
    }
    assert changes_that_forbid_resume(BEFORE, now) == []


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"seed": 1}, "seed"),
        ({"trainer": {"max_steps": 4, "learning_rate": 1.0}}, "trainer.learning_rate"),
        ({"gpu": {"type": "local", "count": 2}}, "gpu.count"),
        ({"model": {"base_url": "http://other", "timeout": 120.0}}, "model.base_url"),
        ({"checkpoint": {"path": "other", "store": None}}, "checkpoint.path"),
        ({"new": 1}, "new"),
    ],
)
def test_a_setting_that_changes_what_is_computed_is_named(
    changed: dict[str, object], name: str
) -> None:
    now = {**BEFORE, **changed}
    assert changes_that_forbid_resume(BEFORE, now) == [name]
    with pytest.raises(UserError, match=rf"^{name} is not what it was when runs/one/0 was begun"):
        refuse_changes(Path("runs/one/0"), BEFORE, now)
