"""Completion of verbs, runs and checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest

from rl_experiments.cli import VERBS
from rl_experiments.completion import complete_words


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("rl-experiments eva", ["evaluate"]),
        ("python -m rl_experiments eva", ["evaluate"]),
        ("./my-venv/bin/rl-experiments plan eva", ["evaluate"]),
        ("rl-experiments ", list(VERBS)),
        ("rl-experiments runs att", ["attach"]),
        ("rl-experiments runs attach ", ["first", "second"]),
        ("rl-experiments resume s", ["second"]),
        ("rl-experiments export f", ["first"]),
        ("rl-experiments evaluate checkpoint=ru", ["checkpoint=runs"]),
        ("rl-experiments evaluate checkpoint=runs/f", ["checkpoint=runs/first"]),
        ("rl-experiments gpu=a", []),
        ("rl-experiments evaluate seed=1 t", []),
    ],
)
def test_a_line_is_completed(
    line: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("first", "second"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    environment = {"COMP_LINE": line, "COMP_POINT": str(len(line))}
    assert complete_words(environment, VERBS) == words
    left = environment["COMP_LINE"].split()
    assert not {"evaluate", "plan", "resume", "python", "-m"} & set(left)


def test_where_no_shell_asks_there_is_nothing_to_complete() -> None:
    assert complete_words({}, VERBS) == []
