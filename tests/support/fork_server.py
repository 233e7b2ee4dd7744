"""The fork server of `forked.py`: it imports modules once, then forks a process for each program.

A request is a connection to the server's socket, with the three standard streams and a line of
JSON. The answers are a line with the process id and, in the end, a line with the exit status.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import io
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
import types
import warnings
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.support.forked import OPTIONS_OF_PYTHON, ForkingPopen


@dataclass
class Ending:
    """How the interpreter ends: a negative status is the signal that kills it."""

    status: int = 0


@dataclass(frozen=True)
class Request:
    """A program to run: `python ARGUMENTS` in a folder, with variables and standard streams."""

    arguments: list[str]
    cwd: str
    variables: dict[str, str]
    blocked_signals: list[int]  # as a child inherits them
    streams: list[int]


def serve() -> None:
    """Import the modules named on the command line, then fork programs until stdin closes.

    It returns in each fork, once its program has ended, and in the server, at the very end.
    """
    _, address, *modules = sys.argv
    ending = Ending()
    atexit.register(_leave, ending)  # before all others, so that it comes last
    for name in modules:
        importlib.import_module(name)
    # A fork has one thread. A lock that another thread held would be locked in it for ever.
    assert threading.active_count() == 1, threading.enumerate()
    assert len([*Path("/proc/self/task").glob("*")]) <= 1, "a library has started a thread"
    gc.collect()
    folders = [item for item in gc.get_objects() if type(item) is TemporaryDirectory]
    for folder in folders:  # a library has made it when imported; a fork must not delete it
        folder._finalizer.atexit = False  # type: ignore[attr-defined]
    gc.freeze()  # the forks' collections leave the server's objects alone, so pages stay shared
    server = Server(address)
    print("ready", flush=True)
    request = server.serve()
    if request is None:
        for folder in folders:
            folder.cleanup()
    else:
        ForkingPopen.address = address
        _become(request, ending)


def _leave(ending: Ending) -> None:
    """End the process without taking the modules apart, which takes longer than many a test."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    if ending.status < 0:
        signal.signal(-ending.status, signal.SIG_DFL)
        os.kill(os.getpid(), -ending.status)
    os._exit(ending.status)


class Server:
    """The connections, one for each running program."""

    def __init__(self, address: str) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(address)
        self._listener.listen(64)
        self._connections: dict[int, socket.socket] = {}  # by process id
        # A child that ends wakes the selector.
        self._child_ended, self._waker = socket.socketpair()
        self._child_ended.setblocking(False)
        self._waker.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        self._selector = selectors.DefaultSelector()
        for source in (self._listener, self._child_ended, sys.stdin):
            self._selector.register(source, selectors.EVENT_READ)

    def serve(self) -> Request | None:
        """Return in each fork the program that it is to become, and None when stdin closes."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._listener:
                    request = self._fork()
                    if request is not None:
                        return request
                elif key.fileobj is self._child_ended:
                    self._answer_for_ended()
                elif key.fileobj is sys.stdin:
                    for process_id in self._connections:
                        _kill_group(process_id)
                    return None
                else:
                    self._kill_abandoned(key.data)

    def _fork(self) -> Request | None:
        connection, _ = self._listener.accept()
        _, streams, _, _ = socket.recv_fds(connection, 1, 3)
        with connection.makefile("rb") as lines:
            line = lines.readline()
        if not line.endswith(b"\n"):  # the client was killed meanwhile
            connection.close()
            return None
        request = Request(**json.loads(line), streams=streams)
        before = signal.pthread_sigmask(signal.SIG_SETMASK, request.blocked_signals)
        process_id = os.fork()
        if process_id == 0:
            signal.set_wakeup_fd(-1)
            self._selector.close()
            connections = (connection, *self._connections.values())
            for inherited in (self._listener, self._child_ended, self._waker, *connections):
                inherited.close()
            return request
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for stream in streams:
            os.close(stream)
        self._connections[process_id] = connection
        self._selector.register(connection, selectors.EVENT_READ, process_id)
        with contextlib.suppress(OSError):
            connection.sendall(b"%d\n" % process_id)
        return None

    def _answer_for_ended(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._child_ended.recv(1 << 16)
        answers = []
        for process_id, connection in [*self._connections.items()]:
            ended, status = os.waitpid(process_id, os.WNOHANG)
            if ended:
                del self._connections[process_id]
                self._selector.unregister(connection)
                answers.append((connection, os.waitstatus_to_exitcode(status)))
        # What these had started themselves is gone before anybody learns of their ends.
        for key, _ in self._selector.select(0):
            self._kill_abandoned(key.data)
        for connection, exit_status in answers:
            with contextlib.suppress(OSError), connection:
                connection.sendall(b"%d\n" % exit_status)

    def _kill_abandoned(self, process_id: int | None) -> None:
        """Kill a program whose connection is closed, as whoever asked for it is gone."""
        connection = self._connections.pop(process_id, None) if process_id else None
        if process_id and connection is not None:
            self._selector.unregister(connection)
            connection.close()
            _kill_group(process_id)
            os.waitpid(process_id, 0)


def _kill_group(process_id: int) -> None:
    for kill in (os.killpg, os.kill):  # a fork that is very new leads no group yet
        with contextlib.suppress(ProcessLookupError):
            kill(process_id, signal.SIGKILL)


def _become(request: Request, ending: Ending) -> None:
    """Be what `python ARGUMENTS` is, in a fork of the server."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest may ignore it
    for number, stream in enumerate(request.streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request.cwd)
    server_path = os.environ.get("PYTHONPATH", "")
    os.environ.clear()
    os.environ.update(request.variables)
    words = [*request.arguments]
    options = []
    while words[0] in OPTIONS_OF_PYTHON:
        options.append(words.pop(0))
    is_module = words[0] == "-m"
    if is_module:
        del words[0]
    first = request.cwd if is_module else str(Path(words[0]).resolve().parent)
    paths = [_entries(path) for path in (server_path, os.environ.get("PYTHONPATH", ""))]
    rest = [entry for entry in sys.path[1:] if entry not in paths[0]]
    sys.path[:] = [first, *paths[1], *(entry for entry in rest if entry not in paths[1])]
    if "-u" in options or "PYTHONUNBUFFERED" in os.environ:
        sys.stdout = io.TextIOWrapper(
            io.FileIO(1, "w", closefd=False), encoding="utf-8", write_through=True
        )
    if "-Werror" in options:
        warnings.simplefilter("error")
    sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
    subprocess.Popen = ForkingPopen  # type: ignore[misc]
    if not words[0].startswith("tests."):
        for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
            del sys.modules[name]
    sys.modules.pop("sitecustomize", None)
    importlib.invalidate_caches()
    try:
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module("sitecustomize")
        sys.argv[:] = words
        if is_module:
            if not hasattr(sys.modules.get(words[0]), "__path__"):
                sys.modules.pop(words[0], None)  # runpy warns of a module that is imported
            runpy.run_module(words[0], run_name="__main__", alter_sys=True)
        else:
            _run_script(Path(words[0]))
    except SystemExit as end:
        ending.status = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
    except KeyboardInterrupt:
        ending.status = -signal.SIGINT
        raise
    except BaseException:
        ending.status = 1
        raise


def _entries(path: str) -> list[str]:
    return [str(Path(entry).absolute()) for entry in path.split(os.pathsep) if entry]


def _run_script(file: Path) -> None:
    main = types.ModuleType("__main__")
    main.__file__ = str(file.resolve())
    sys.modules["__main__"] = main
    exec(compile(file.read_bytes(), main.__file__, "exec"), main.__dict__)


if __name__ == "__main__":
    serve()
