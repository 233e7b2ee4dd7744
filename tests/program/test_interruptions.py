"""Ctrl-C in every phase, folders that cannot be written, disks that fill: one line, then resume."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import resource
import select
import shlex
import signal
import subprocess
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.forked import ForkedProcess
from tests.support.program import SMALL, Program, WarmStarter, command

LONGER = [*SMALL, "trainer.max_steps=12", "checkpoint.keep_latest=9"]
# No phase is over before it can be interrupted.
SETTINGS = [
    *LONGER,
    "num_examples=60",
    "evaluation.batch_size=4",
    "model.scratch.warmup_steps=150",
    "logger.project=my tests",  # an override that a shell needs quoted
]
SECONDS = 120.0  # after which something that should have happened never will


class Runner:
    """Runs the program in an empty folder, as the leader of a process group, as a shell does."""

    def __init__(self, folder: Path, environment: dict[str, str], warm: WarmStarter) -> None:
        self.folder = folder
        self.environment = dict(environment)
        self.warm = warm
        self.errors = ""  # what the latest run has written to stderr

    def run(self, *arguments: str, **options: Any) -> str:
        """Run to the end, without an error, and return what was printed."""
        return self.start(list(arguments), **options).to_end(code=0)

    def interrupt(
        self, arguments: list[str], when: Callable[[str], bool], **options: Any
    ) -> list[str]:
        """Press Ctrl-C once `when(printed)` holds; return the arguments that the line advises."""
        started = self.start(arguments, **options)
        started.wait_until(when)
        os.killpg(started.process.pid, signal.SIGINT)
        started.to_end(code=130)
        return advised_arguments(one_line(self.errors))

    def start(self, arguments: list[str], **options: Any) -> Started:
        """Start the program in the background."""
        return Started(self, arguments, **options)


class Started:
    """A run in the background. With `is_warm` its imports are done before it starts."""

    def __init__(
        self, runner: Runner, arguments: list[str], *, is_warm: bool = False, **options: Any
    ) -> None:
        self.runner = runner
        self.out, self.err = runner.folder / "stdout", runner.folder / "stderr"
        self.process: ForkedProcess | subprocess.Popen[bytes]
        if is_warm:
            self.process = runner.warm.start(
                arguments,
                cwd=runner.folder,
                variables=runner.environment,
                out=self.out,
                err=self.err,
            )
            return
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(
                command(arguments),
                cwd=runner.folder,
                env=runner.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
                **options,
            )

    def wait_until(self, when: Callable[[str], bool]) -> None:
        """Wait until `when(printed)` holds."""
        deadline = time.monotonic() + SECONDS
        while not when(self.out.read_text()):
            assert self.process.poll() is None, "over too early: " + self.err.read_text()
            assert time.monotonic() < deadline, "too late: " + self.out.read_text()
            time.sleep(0.02)

    def to_end(self, *, code: int) -> str:
        """Wait for the end with this exit status, and return what was printed."""
        try:
            self.process.wait(timeout=SECONDS)
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
        printed, self.runner.errors = self.out.read_text(), self.err.read_text()
        assert self.process.returncode == code, printed + self.runner.errors
        return printed


@pytest.fixture
def runner(tmp_path: Path, program_environment: dict[str, str], warm: WarmStarter) -> Runner:
    return Runner(tmp_path, program_environment, warm)


def shows(words: str) -> Callable[[str], bool]:
    """Return the condition that these words have been printed."""
    return lambda printed: words in printed


def one_line(text: str) -> str:
    """Return the only line of the text."""
    lines = text.splitlines()
    assert len(lines) == 1, text
    return lines[0]


def advised_arguments(line: str) -> list[str]:
    """Return the arguments of the command that the line advises to go on with."""
    advice = re.search(r"python -m rl_experiments (resume .*)$", line)
    assert advice, line
    return shlex.split(advice[1])


def json_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


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

    go_on = runner.interrupt(go_on, warming_up, is_warm=True)
    assert not list(cached.glob("*"))  # neither a model nor half of one

    go_on = runner.interrupt(go_on, shows("evaluate before 12/60"), is_warm=True)
    mark(before)
    played = marked(before)
    assert 12 <= played < 60

    go_on = runner.interrupt(go_on, shows("train step 4/12"), is_warm=True)
    assert marked(before) == played and len(json_lines(before)) == 60
    step = re.search(r"step (\d+) is kept", runner.errors)
    assert step and 2 <= int(step[1]) < 12
    assert (run / f"checkpoints/checkpoint-{step[1]}/manifest.json").exists()
    mark(metrics)

    go_on = runner.interrupt(go_on, shows("evaluate after 12/60"), is_warm=True)
    assert steps(metrics) == [2, 4, 6, 8, 10, 12]
    assert marked(metrics) == int(step[1]) // 2
    mark(after)
    played = marked(after)
    mark(metrics)

    printed = runner.run(*go_on, is_warm=True)
    assert "evaluate before" not in printed
    assert marked(after) == played < 60 == len(json_lines(after))
    assert marked(metrics) == len(json_lines(metrics)) == 6
    assert "after - before" in printed and runner.errors == ""
    assert len(list(cached.iterdir())) == 1


def test_evaluate_goes_on_after_ctrl_c(runner: Runner, tmp_path: Path) -> None:
    file = tmp_path / "runs/e/0/evaluation/merge_greedy.jsonl"

    def some_played(_: str) -> bool:
        return file.exists() and file.read_text().count("\n") > 20

    arguments = ["evaluate", "policy=merge_greedy", "num_examples=600", "name=e"]
    go_on = runner.interrupt(arguments, some_played, is_warm=True)
    mark(file)
    played = marked(file)
    assert 20 < played < 600
    runner.run(*go_on, is_warm=True)
    assert marked(file) == played and len(json_lines(file)) == 600
    assert not (tmp_path / "runs/e/0/checkpoints").exists()


def test_ctrl_c_while_libraries_are_imported(runner: Runner, tmp_path: Path) -> None:
    opened = tmp_path / "runs/e/0/evaluation/merge_greedy.jsonl"

    def importing(_: str) -> bool:
        there = opened.exists()
        time.sleep(0.3 if there else 0)
        return there

    go_on = runner.interrupt(["evaluate", "model=tiny", "num_examples=5", "name=e"], importing)
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


def test_ctrl_c_that_an_import_turns_into_another_error(runner: Runner, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(SWALLOWED)
    path = [str(tmp_path), *filter(None, [runner.environment.get("PYTHONPATH")])]
    runner.environment["PYTHONPATH"] = os.pathsep.join(path)
    runner.start(["evaluate", "model=tiny", "num_examples=5", "name=e"]).to_end(code=130)
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


def test_runs_that_is_a_file(program: Program, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    arguments = ["evaluate", "policy=random", "num_examples=5", "name=a"]
    done = program(*arguments)
    assert done.returncode == 1 and done.stdout == ""
    line = one_line(done.stderr)
    assert "runs" in line and "hydra.sweep.dir=" in line
    elsewhere = program(*arguments, "hydra.sweep.dir=elsewhere")
    assert elsewhere.returncode == 0, elsewhere.stderr
    assert (tmp_path / "elsewhere/0/evaluation.json").exists()


def namespace() -> list[str] | None:
    """Return the words before a command that let it mount, or None where that is not allowed."""
    for words in (["unshare", "--mount"], ["unshare", "--map-root-user", "--mount"]):
        try:
            tried = subprocess.run([*words, "mount", "-t", "tmpfs", "none", "/mnt"], timeout=20)
        except OSError:
            return None
        if tried.returncode == 0:
            return words
    return None


needs_mount = pytest.mark.skipif(namespace() is None, reason="nothing can be mounted here")


def run_mounted(runner: Runner, script: str, arguments: list[str]) -> None:
    """Run a shell script that may mount on `runs`, with the program as "$@"."""
    (runner.folder / "runs").mkdir()
    words = [*(namespace() or []), "sh", "-ec", script, "sh", *command(arguments)]
    subprocess.run(words, cwd=runner.folder, env=runner.environment, check=True, timeout=300)


@needs_mount
def test_runs_that_is_read_only(runner: Runner, tmp_path: Path) -> None:
    script = 'mount -t tmpfs -o ro none runs; "$@" >out 2>err || echo $? >code'
    run_mounted(runner, script, ["evaluate", "policy=random", "num_examples=5", "name=a"])
    assert (tmp_path / "code").read_text() == "1\n"
    line = one_line((tmp_path / "err").read_text())
    assert "Read-only file system" in line and "hydra.sweep.dir=" in line


def check_whole(checkpoints: Path, expected: list[int]) -> None:
    """Assert that just these checkpoints are sealed, and have the files of their manifests."""
    sealed = {int(m.parent.name.split("-")[1]): m for m in checkpoints.glob("*/manifest.json")}
    assert sorted(sealed) == expected
    for manifest in sealed.values():
        for name, (size, _) in json.loads(manifest.read_text())["files"].items():
            assert (manifest.parent / name).stat().st_size == size


@needs_mount
def test_a_disk_that_fills_during_training(runner: Runner, tmp_path: Path) -> None:
    # Room for two checkpoints of 1.3 MB and no third.
    script = """
        mount -t tmpfs -o size=3500k none runs
        "$@" >out1 2>err1 || echo $? >code
        cp -r runs full
    """
    arguments = ["train", *LONGER, "name=a"]
    run_mounted(runner, script, arguments)
    assert (tmp_path / "code").read_text() == "1\n", (tmp_path / "out1").read_text()
    line = one_line((tmp_path / "err1").read_text())
    assert "No space left" in line and "free some space" in line and "resume=true" in line
    run = tmp_path / "runs/a/0"
    (tmp_path / "runs").rmdir()  # what was mounted there is gone with its namespace
    (tmp_path / "full").rename(tmp_path / "runs")  # the same files on a disk with room
    check_whole(run / "checkpoints", [2, 4])
    assert steps(run / "metrics.jsonl")[:2] == [2, 4]

    printed = runner.run(*arguments, "resume=true", is_warm=True)
    assert "train step 6/12" in printed
    assert "train step 4/12" not in printed
    assert runner.errors == ""
    assert steps(run / "metrics.jsonl") == [2, 4, 6, 8, 10, 12]
    check_whole(run / "checkpoints", [2, 4, 6, 8, 10, 12])
    assert (run / "evaluation.json").exists()


def test_a_limit_on_file_sizes(runner: Runner, tmp_path: Path) -> None:
    arguments = ["train", *SMALL, "name=a"]
    runner.run(*arguments, "trainer.max_steps=2", is_warm=True)
    checkpoints = tmp_path / "runs/a/0/checkpoints"
    more = [*arguments, "resume=true"]
    limit = 500 * 1024  # above the model's file, below the optimizer's
    limited = runner.start(
        more, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    )
    limited.to_end(code=1)
    line = one_line(runner.errors)
    assert "File too large" in line and "ulimit -f" in line and "resume=true" in line
    check_whole(checkpoints, [2])
    runner.run(*more, is_warm=True)
    check_whole(checkpoints, [2, 4])
    assert steps(tmp_path / "runs/a/0/metrics.jsonl") == [2, 4]
