"""Programs that a fork server starts are as Python would start them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.forked import ForkedProcess
from tests.support.servers import launcher_server

pytestmark = pytest.mark.slow
HANG_SECONDS = 120.0

LOOK = """
import json, os, signal, sys
print(json.dumps({
    "argv": sys.argv, "cwd": os.getcwd(), "name": __name__, "path": sys.path[:2],
    "variables": dict(os.environ), "leads": os.getsid(0) == os.getpgid(0) == os.getpid(),
    "blocked": [*signal.pthread_sigmask(signal.SIG_BLOCK, [])],
}))
"""
NESTED = """
import subprocess, sys
command = [sys.executable, "-u", "-m", "inner", "x"]
print(subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout.decode())
"""
WAIT = "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(600)\n"


def start(folder: Path, program: str, *arguments: str, **options: Any) -> ForkedProcess:
    """Start the text of a program, with its output as a pipe."""
    (folder / "program.py").write_text(program)
    options = {"stdout": subprocess.PIPE, "text": True, "cwd": folder, **options}
    return launcher_server().start(["program.py", *arguments], **options)


@pytest.mark.parametrize("blocked", [set(), {signal.SIGUSR1}])
def test_it_gets_what_a_child_gets(tmp_path: Path, blocked: set[signal.Signals]) -> None:
    (tmp_path / "modules").mkdir()
    variables = {"PYTHONPATH": "modules", "COLOUR": "blue"}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        process = start(tmp_path, LOOK, "a", "b c", env=variables)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert json.loads(process.communicate()[0]) == {
        "argv": ["program.py", "a", "b c"],
        "cwd": str(tmp_path),
        "name": "__main__",
        "path": [str(tmp_path), str(tmp_path / "modules")],
        "variables": variables,
        "leads": True,
        "blocked": [int(number) for number in blocked],
    }
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("program", "status", "errors"),
    [
        ("raise SystemExit(7)", 7, ""),
        ("raise SystemExit('no luck')", 1, "no luck\n"),
        ("1 / 0", 1, "ZeroDivisionError: division by zero\n"),
        ("raise KeyboardInterrupt", -signal.SIGINT, "KeyboardInterrupt\n"),
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL, ""),
    ],
)
def test_its_end_is_seen(tmp_path: Path, program: str, status: int, errors: str) -> None:
    process = start(tmp_path, program, stderr=subprocess.PIPE)
    assert process.communicate()[1].endswith(errors)
    assert process.wait() == process.poll() == status


def test_it_can_be_interrupted(tmp_path: Path) -> None:
    process = start(tmp_path, WAIT, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    assert int(process.stdout.readline()) == process.pid and process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(HANG_SECONDS) == -signal.SIGINT


def test_it_dies_with_whoever_started_it(tmp_path: Path) -> None:
    process = start(tmp_path, WAIT)
    assert process.stdout is not None
    process.stdout.readline()
    process_id = process.pid
    del process
    deadline = time.monotonic() + HANG_SECONDS
    while Path(f"/proc/{process_id}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_it_starts_is_forked_too(tmp_path: Path) -> None:
    (tmp_path / "inner.py").write_text("import os, sys\nprint(sys.argv[1:], os.getppid())\n")
    printed, _ = start(tmp_path, NESTED, env={**os.environ, "PYTHONPATH": ""}).communicate()
    argument, parent = printed.split()
    server = start(tmp_path, "import os; print(os.getppid())").communicate()[0]
    assert argument == "['x']" and parent == server.strip()


def test_other_commands_are_started_as_ever(tmp_path: Path) -> None:
    program = (
        "import subprocess, sys\n"
        "command = [sys.executable, '-c', 'import os; print(os.getppid())']\n"
        "print(os.getpid(), subprocess.run(command, capture_output=True, text=True).stdout)"
    )
    printed, _ = start(tmp_path, f"import os\n{program}").communicate()
    parent, seen_by_child = printed.split()
    assert parent == seen_by_child
