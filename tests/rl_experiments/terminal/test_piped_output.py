"""What the program prints into a pipe: one line a message, however narrow the terminal is."""

from __future__ import annotations

import re

import pytest

from rl_experiments.terminal.progress import Progress
from rl_experiments.terminal.tables import new_table
from tests.support.program import SMALL, Program


@pytest.mark.slow
def test_progress_into_a_pipe_is_one_line_a_message(program: Program) -> None:
    done = program(*SMALL, "trainer.max_steps=2", "name=piped", COLUMNS="20")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "Model: tiny (gpu=local; model=... chooses another)" in lines
    assert "loading the model (made at random and warmed up, the first time)" in lines
    steps = [line for line in lines if line.startswith("train step ")]
    assert len(steps) == 1
    assert re.fullmatch(r"train step 2/2  reward .* tokens/s  .*  0 s left", steps[0])
    assert len(steps[0]) > 80
    assert any(line.startswith("before: made at random") and len(line) > 80 for line in lines)


def test_messages_are_printed_as_they_are_without_markup(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "10")
    message = "[0] env.words=[a,b]: see [bold]README.md[/bold] before the next run"
    progress = Progress()
    progress.print(message)
    with progress.status(message):
        pass
    assert capsys.readouterr().out == f"{message}\n" * 2


def test_a_phase_prints_a_line_for_each_fifth_or_for_each_note(
    capsys: pytest.CaptureFixture[str],
) -> None:
    progress = Progress()
    with progress.phase("play", total=20, done=5) as advance:
        for _ in range(15):
            advance(1)
    with progress.phase("train", total=3, line_per_note=True) as advance:
        for note in (None, "reward 1", None):
            advance(1, note)
    lines = [line.partition("  ")[0] for line in capsys.readouterr().out.splitlines()]
    assert lines == ["play 9/20", "play 13/20", "play 17/20", "train 2/3"]


def test_a_quiet_progress_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(quiet=True)
    progress.print("hello")
    with progress.status("hello"), progress.phase("play", total=1) as advance:
        advance(1)
    assert capsys.readouterr() == ("", "")


def test_a_table_keeps_its_figures_whole_and_folds_its_names(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    table = new_table("10 unseen seeds", "policy", "win rate", "ends", text=["ends"])
    table.add_row("runs/a/0/checkpoints/checkpoint-4", "0.864  0.841 to 0.884", "won 9")
    Progress().print(table)
    printed = capsys.readouterr().out
    assert "0.864  0.841 to 0.884" in printed
    assert "…" not in printed
