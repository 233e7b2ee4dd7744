"""The program in the background, as a shell starts it: for Ctrl-C and for full disks."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.forked import ForkedProcess
from tests.support.program import SMALL, WarmStarter, command

LONGER = [*SMALL, "trainer.max_steps=12", "checkpoint.keep_latest=9"]
SECONDS = 120.0  # after which something that should have happened never will


class Runner:
    """Runs the program in an empty folder, as the leader of a process group, as a shell does."""

    def __init__(self, folder: Path, environment: dict[str, str], warm: WarmStarter) -> None:
        self.folder = folder
        self.environment = dict(environment)
        self.warm = warm
        self.errors = ""  # what the latest run has written to stderr

    def run(self, *arguments: str) -> str:
        """Run to the end, without an error, and return what was printed."""
        return self.start(list(arguments)).to_end(code=0)

    def interrupt(
        self, arguments: list[str], when: Callable[[str], bool], *, is_warm: bool = True
    ) -> list[str]:
        """Press Ctrl-C once `when(printed)` holds; return the arguments that the line advises."""
        started = self.start(arguments, is_warm=is_warm)
        started.wait_until(when)
        os.killpg(started.process.pid, signal.SIGINT)
        started.to_end(code=130)
        return advised_arguments(one_line(self.errors))

    def start(self, arguments: list[str], *, is_warm: bool = True) -> Started:
        """Start the program in the background. If `is_warm` its imports are done already."""
        return Started(self, arguments, is_warm=is_warm)

    def before_it_starts(self, code: str) -> None:
        """Run this Python code in each process of the program, before the program itself."""
        folder = self.folder / "site"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(code)
        path = [str(folder), *filter(None, [self.environment.get("PYTHONPATH")])]
        self.environment["PYTHONPATH"] = os.pathsep.join(path)


class Started:
    """A run in the background."""

    def __init__(self, runner: Runner, arguments: list[str], *, is_warm: bool) -> None:
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
