"""Ctrl-C in every phase and in every verb: one line, then resume."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import subprocess
import termios
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.program import command
from tests.support.results import json_lines
from tests.support.runner import LONGER, SECONDS, Runner, advised_arguments, one_line, runner

__all__ = ["runner"]  # a fixture

# No phase is over before it can be interrupted.
SETTINGS = [
    *LONGER,
    "num_examples=30",
    "evaluation.batch_size=4",
    "model.scratch.warmup_steps=150",
    "logger.project=my tests",  # an override that a shell needs quoted
]


def shows(words: str) -> Callable[[str], bool]:
    """Return the condition that these words have been printed."""
    return lambda printed: words in printed


def mark(file: Path) -> None:
    """Mark the records of the file, so that those of a later run differ."""
    records = [{**record, "kept": True} for record in json_lines(file)]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))


def marked(file: Path) -> int:
    """Return the number of marked records."""
    return sum("kept" in record for record in json_lines(file))


def steps(file: Path) -> list[int]:
    """Return the steps of the file's records."""
    return [record["step"] for record in json_lines(file)]


def test_a_run_goes_on_after_ctrl_c_in_every_phase(runner: Runner, tmp_path: Path) -> None:
    run = tmp_path / "runs/a/0"
    metrics, before, after = (
        run / "metrics.jsonl",
        run / "evaluation/before.jsonl",
        run / "evaluation/after.jsonl",
    )
    # The warm-up must not have been done by another test.
    runner.environment["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    cached = tmp_path / "cache/rl_experiments/scratch"

    go_on = runner.interrupt(["train", *SETTINGS, "name=a"], shows("loading PyTorch"))
    assert go_on == ["resume", "a"]

    started: list[float] = []

    def warming_up(printed: str) -> bool:
        if "loading the model" in printed and not started:
            started.append(time.monotonic())
        return bool(started) and time.monotonic() > started[0] + 1

    go_on = runner.interrupt(go_on, warming_up)
    assert not list(cached.glob("*"))  # neither a model nor half of one

    go_on = runner.interrupt(go_on, shows("evaluate before 6/30"))
    mark(before)
    played = marked(before)
    assert 6 <= played < 30

    go_on = runner.interrupt(go_on, shows("train step 4/12"))
    assert marked(before) == played and len(json_lines(before)) == 30
    step = re.search(r"step (\d+) is kept", runner.errors)
    assert step and 2 <= int(step[1]) < 12
    assert (run / f"checkpoints/checkpoint-{step[1]}/manifest.json").exists()
    mark(metrics)

    go_on = runner.interrupt(go_on, shows("evaluate after 6/30"))
    assert steps(metrics) == [2, 4, 6, 8, 10, 12]
    assert marked(metrics) == int(step[1]) // 2
    mark(after)
    played = marked(after)
    mark(metrics)

    printed = runner.run(*go_on)
    assert "evaluate before" not in printed
    assert marked(after) == played < 30 == len(json_lines(after))
    assert marked(metrics) == len(json_lines(metrics)) == 6
    assert "after - before" in printed and runner.errors == ""
    assert len(list(cached.iterdir())) == 1


def test_evaluate_goes_on_after_ctrl_c(runner: Runner, tmp_path: Path) -> None:
    file = tmp_path / "runs/e/0/evaluation/merge_greedy.jsonl"

    def some_played(_: str) -> bool:
        return file.exists() and file.read_text().count("\n") > 20

    arguments = ["evaluate", "policy=merge_greedy", "num_examples=600", "name=e"]
    go_on = runner.interrupt(arguments, some_played)
    mark(file)
    played = marked(file)
    assert 20 < played < 600
    runner.run(*go_on)
    assert marked(file) == played and len(json_lines(file)) == 600
    assert not (tmp_path / "runs/e/0/checkpoints").exists()


def test_ctrl_c_while_libraries_are_imported(runner: Runner, tmp_path: Path) -> None:
    opened = tmp_path / "runs/e/0/evaluation/merge_greedy.jsonl"

    def importing(_: str) -> bool:
        there = opened.exists()
        time.sleep(0.3 if there else 0)
        return there

    words = ["evaluate", "model=tiny", "num_examples=5", "name=e"]
    go_on = runner.interrupt(words, importing, is_warm=False)
    assert go_on == ["resume", "e"]


# What torch and numpy do now and then: Ctrl-C during their import comes out as another error.
SWALLOWED = """
import signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                raise ImportError("half imported") from None

sys.meta_path.insert(0, Finder())
"""


def test_ctrl_c_that_an_import_turns_into_another_error(runner: Runner) -> None:
    runner.before_it_starts(SWALLOWED)
    words = ["evaluate", "model=tiny", "num_examples=5", "name=e"]
    runner.start(words, is_warm=False).to_end(code=130)
    assert advised_arguments(one_line(runner.errors)) == ["resume", "e"]


def test_ctrl_c_leaves_play(tmp_path: Path, program_environment: dict[str, str]) -> None:
    keyboard, terminal = pty.openpty()
    process = subprocess.Popen(
        command(["play", "env.max_moves=5"]),
        cwd=tmp_path,
        env=program_environment,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # its Ctrl-C is the process's
    )
    os.close(terminal)
    assert "reply: " in read_until(keyboard, "reply: ", seconds=SECONDS)
    type_until(keyboard, b"left\n", lambda shown: "reply: " in shown)
    rest = type_until(keyboard, b"\x03", lambda _: process.poll() is not None)
    os.close(keyboard)
    assert process.returncode in (0, 130), rest  # Ctrl-C is how one leaves
    after = rest.rpartition("reply: ")[2]  # a move typed twice shows another board before
    assert len(after.replace("^C", "").strip().splitlines()) <= 1, rest


def type_until(terminal: int, typed: bytes, condition: Callable[[str], bool]) -> str:
    """Type until the condition holds for what is shown then, and return that.

    Once may not do, for a line editor discards what is typed before it listens.
    """
    shown = ""
    deadline = time.monotonic() + SECONDS
    while not condition(shown):
        assert time.monotonic() < deadline, shown
        os.write(terminal, typed)
        shown += read_until(terminal, "reply: ", seconds=5)
    return shown


def read_until(terminal: int, words: str, *, seconds: float) -> str:
    """Return what a terminal shows up to these words, to its end, or until it rests so long."""
    shown = ""
    while words not in shown:
        ready, _, _ = select.select([terminal], [], [], seconds)
        try:
            read = os.read(terminal, 1000) if ready else b""
        except OSError:  # the program has closed its end
            read = b""
        if not read:
            return shown
        shown += read.decode(errors="replace")
    return shown
