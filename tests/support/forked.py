"""Programs that start at once: a process that has imported the libraries forks them.

Hundreds of tests start `python -m rl_experiments`, whose libraries take seconds to import. A fork
server (`fork_server.py`) imports them once; each program is then a fork of it that runs the module.

    server = ForkServer(["torch"], variables=os.environ)
    process = server.start(["-m", "rl_experiments", "evaluate"], cwd=folder, env=variables)
    process.wait()

Each program is a process of its own, in a session of its own, with its own folder, variables and
streams. It is killed when the object that stands for it is gone, so none outlives its starter.
What the program itself starts by `subprocess.Popen([sys.executable, "-m", ...])`, as the launcher's
supervisor starts a job, is forked by the same server.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

CHECKOUT = Path(__file__).resolve().parents[2]
# Only a process with a single thread can be forked safely.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
OPTIONS_OF_PYTHON = ("-u", "-Werror")  # those that a fork can take over
OPTIONS_OF_POPEN = ("cwd", "env", "stdin", "stdout", "stderr", "text", "start_new_session")


class ForkServer:
    """A process that has imported these modules, under these variables, and forks programs.

    With a `base` the server is itself a program of that server, so it has that one's modules too.
    A program may have other variables than the server. They have no effect on what an imported
    module has read while it was imported.
    """

    def __init__(
        self,
        modules: Sequence[str],
        variables: Mapping[str, str],
        *,
        base: ForkServer | None = None,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="fork-")
        self.address = str(Path(self._folder.name, "socket"))
        start = base.start if base else _start_python
        self._process = start(
            ["-m", "tests.support.fork_server", self.address, *modules],
            cwd=CHECKOUT,
            env={**variables, **ONE_THREAD},
            stdin=subprocess.PIPE,  # the server ends when this pipe closes
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in the terminal is for pytest alone
        )
        atexit.register(self.close)

    def start(self, arguments: Sequence[str], **options: Any) -> ForkedProcess:
        """Start `python ARGUMENTS`, with options of `subprocess.Popen`."""
        self.wait_until_ready()
        return ForkedProcess(self.address, [sys.executable, *arguments], **options)

    def wait_until_ready(self) -> None:
        """Wait until all modules are imported."""
        assert self._process.stdout is not None
        if not self._process.stdout.closed:
            assert self._process.stdout.readline() == b"ready\n", "the fork server did not start"
            self._process.stdout.close()

    def close(self) -> None:
        """End the server and the programs that still run."""
        atexit.unregister(self.close)
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._folder.cleanup()


def _start_python(arguments: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, *arguments], **options)


class ForkedProcess:
    """A program that a fork server has started, with the methods of a `Popen`."""

    def __init__(
        self,
        address: str,
        command: Sequence[str | Path],
        *,
        cwd: str | Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: int | IO[Any] | None = None,
        stdout: int | IO[Any] | None = None,
        stderr: int | IO[Any] | None = None,
        text: bool | None = None,
        start_new_session: bool = True,  # as it always is
    ) -> None:
        self.args = [str(word) for word in command]
        self.returncode: int | None = None
        self._lock = threading.Lock()  # for threads that wait for the same program
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(address)
        self._answers = self._connection.makefile("rb")
        pipes: dict[int, IO[Any]] = {}
        with contextlib.ExitStack() as stack:
            streams = [
                _descriptor(value, number, stack, pipes, is_text=bool(text))
                for number, value in enumerate((stdin, stdout, stderr))
            ]
            if stderr == subprocess.STDOUT:
                streams[2] = streams[1]
            request = {
                "arguments": self.args[1:],
                "cwd": str(cwd or Path.cwd()),
                "variables": {**(os.environ if env is None else env)},
                "blocked_signals": [*signal.pthread_sigmask(signal.SIG_BLOCK, [])],
            }
            socket.send_fds(self._connection, [b"\n"], streams)
            self._connection.sendall(json.dumps(request).encode() + b"\n")
            answer = self._answers.readline()
            assert answer, "the fork server has ended"
            self.pid = int(answer)
        self.stdin, self.stdout, self.stderr = (pipes.get(number) for number in range(3))

    def fileno(self) -> int:
        """Return the descriptor that can be read once the program has ended."""
        return self._connection.fileno()

    def poll(self) -> int | None:
        """Return the exit status, or None while the program runs."""
        return self._status_within(0)

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status once the program has ended."""
        status = self._status_within(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return status

    def communicate(self, input: None = None, timeout: float | None = None) -> tuple[Any, Any]:
        """Read the pipes of the program to their ends, and wait for its end."""
        pipes = (self.stdout, self.stderr)
        with ThreadPoolExecutor(max_workers=2) as pool:
            output, errors = pool.map(lambda pipe: pipe.read() if pipe else None, pipes)
        self.wait(timeout)
        return output, errors

    def send_signal(self, number: int) -> None:
        """Send the program a signal, unless it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask the program to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the program, without its children."""
        self.send_signal(signal.SIGKILL)

    def kill_group(self) -> None:
        """Kill the program and the children in its process group, unless it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self.wait()

    def __enter__(self) -> ForkedProcess:
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in (self.stdin, self.stdout, self.stderr):
            if pipe is not None:
                pipe.close()
        self.wait()

    def _status_within(self, seconds: float | None) -> int | None:
        with self._lock, selectors.DefaultSelector() as selector:
            if self.returncode is None:
                selector.register(self._connection, selectors.EVENT_READ)
                if selector.select(seconds):
                    self.returncode = int(self._answers.readline() or -signal.SIGKILL)
                    self._answers.close()
                    self._connection.close()
            return self.returncode


class ForkingPopen(subprocess.Popen[Any]):
    """A `subprocess.Popen` that has Python programs forked by the server at `address`."""

    address = ""

    def __new__(cls, args: Any, *more: Any, **options: Any) -> Any:
        if cls.address and not more and _can_be_forked(args, options):
            return ForkedProcess(cls.address, args, **options)
        return super().__new__(cls)


def _can_be_forked(command: Any, options: Mapping[str, Any]) -> bool:
    if not isinstance(command, list | tuple) or command[0] != sys.executable:
        return False
    if any(value and name not in OPTIONS_OF_POPEN for name, value in options.items()):
        return False
    words = [str(word) for word in command[1:]]
    while words and words[0] in OPTIONS_OF_PYTHON:
        words.pop(0)
    return bool(words) and (words[0] == "-m" or words[0].endswith(".py"))


def _descriptor(
    value: int | IO[Any] | None,
    number: int,
    stack: contextlib.ExitStack,
    pipes: dict[int, IO[Any]],
    *,
    is_text: bool,
) -> int:
    """Return the descriptor that a program gets as its standard stream of this number.

    `value` is what `Popen` takes. The stack closes what is for the program alone; our end of a pipe
    goes into `pipes`.
    """
    if value is None or value == subprocess.STDOUT:
        return number
    if value == subprocess.PIPE:
        read_end, write_end = os.pipe()
        theirs, ours = (read_end, write_end) if number == 0 else (write_end, read_end)
        pipes[number] = os.fdopen(ours, ("w" if number == 0 else "r") + ("" if is_text else "b"))
    elif value == subprocess.DEVNULL:
        theirs = os.open(os.devnull, os.O_RDWR)
    else:
        return value if isinstance(value, int) else value.fileno()
    stack.callback(os.close, theirs)
    return theirs
