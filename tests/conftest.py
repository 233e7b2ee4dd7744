"""How the tests run the program: as a user does, in a process of its own, in an empty folder."""

from __future__ import annotations

import atexit
import functools
import gc
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO

import pytest

# Two processes with two threads each would spend their time waiting for one another.
os.environ["OMP_NUM_THREADS"] = "1"

# An experiment of a few seconds: real model, real TRL, few and short episodes.
SMALL = [
    "num_examples=12",
    "env.max_moves=8",
    "trainer.max_steps=4",
    "trainer.num_generations=4",
    "trainer.per_device_train_batch_size=4",
    "trainer.steps_per_generation=2",
    "checkpoint.every_steps=2",
    "model.scratch.warmup_episodes=40",
    "model.scratch.warmup_steps=20",
]

Program = Callable[..., subprocess.CompletedProcess[str]]

# What a run imports, which takes seconds.
IMPORTED = (
    "matplotlib.pyplot",
    "openai",
    "rl_experiments.cli",
    "rl_experiments.commands.evaluate",
    "rl_experiments.training.grpo",
    "rl_experiments.commands.train",
    "transformers.models.qwen3.modeling_qwen3",
)
# The variables that none of these read. With any other the program starts from nothing: so with
# WANDB_..., as wandb makes a folder when it is imported, which the first child would delete.
READ_LATER = ("AWS_", "COLUMNS", "HYDRA_", "MODAL_", "OPENAI_")


class Warm:
    """A process that has imported it all; a program that it starts is a child of it, one at a time.

    Each child is a real one: it has its own folder, variables, files and process group.
    """

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from tests.conftest import serve; serve()"],
            bufsize=0,
            cwd=Path(__file__).parent.parent,
            env={**variables, "JE_ARROW_MALLOC_CONF": "background_thread:false"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # its Ctrl-C is not the terminal's
        )
        self._child: Child | None = None

    def start(
        self,
        arguments: Sequence[str],
        *,
        cwd: Path,
        variables: Mapping[str, str],
        out: str | Path,
        err: str | Path,
    ) -> Child:
        assert self._process.stdin is not None and self._process.stdout is not None
        self.kill()
        files = [os.devnull, str(out), str(err)]
        asked = {"words": [*arguments], "cwd": str(cwd), "variables": {**variables}, "files": files}
        self._process.stdin.write(json.dumps(asked).encode() + b"\n")
        self._child = Child(self._process.stdout)
        return self._child

    def kill(self) -> None:
        """The latest child, with its own children, where a test has left it running."""
        if self._child is not None and self._child.poll() is None:
            os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()

    def close(self) -> None:
        self.kill()
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


class Child:
    """As much of a `Popen` as the tests use."""

    def __init__(self, told: IO[bytes]) -> None:
        self._told = told
        self.pid = int(told.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        return self._look(0)

    def wait(self, timeout: float | None = None) -> int:
        code = self._look(timeout)
        if code is None:
            raise subprocess.TimeoutExpired("rl_experiments", timeout or 0)
        return code

    def _look(self, seconds: float | None) -> int | None:
        if self.returncode is None and select.select([self._told], [], [], seconds)[0]:
            self.returncode = int(self._told.readline())
        return self.returncode


def serve() -> None:
    """Be the warm process: a line of JSON starts a child; told are its id, then how it ended."""
    ending = [0]
    atexit.register(leave, ending)  # before all others, so it comes last
    for name in IMPORTED:
        import_module(name)
    # A lock that another thread held would be held in the children for ever.
    assert len([*Path("/proc/self/task").glob("*")]) <= 1 == threading.active_count()
    gc.freeze()
    for line in sys.stdin.buffer:
        child = os.fork()
        if not child:
            return be_the_program(ending, **json.loads(line))
        os.setpgid(child, child)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def be_the_program(
    ending: list[int], *, words: list[str], cwd: str, variables: dict[str, str], files: list[str]
) -> None:
    """What `python -m rl_experiments` is, once its imports are done; `ending` gets its status."""
    for number, file in enumerate(files):
        os.dup2(os.open(file, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(variables)
    sys.path[0], sys.argv[1:] = cwd, words
    try:
        runpy.run_module("rl_experiments", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        ending[0] = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
    except BaseException:
        ending[0] = 1
        raise


def leave(ending: list[int]) -> None:
    """Do not take the heavy modules apart, which takes longer than many a test."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(ending[0])


@pytest.fixture(scope="session")
def program_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variables of the programs that the tests run; the cache is the tests' own."""
    cache = tmp_path_factory.mktemp("cache")
    quiet = {"XDG_CACHE_HOME": str(cache), "COLUMNS": "120"}
    return {**os.environ, **quiet, "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="session")
def warm(program_environment: dict[str, str]) -> Iterator[Warm]:
    process = Warm(program_environment)
    yield process
    process.close()


@pytest.fixture(scope="session")
def run_in(warm: Warm, program_environment: dict[str, str]) -> Program:
    """`run_in(folder, "evaluate", "policy=random")` runs the command line in that folder."""

    def run(
        cwd: Path, *arguments: str, timeout: float = 300, from_nothing: bool = False, **given: str
    ) -> subprocess.CompletedProcess[str]:
        variables = {**program_environment, **given}
        if from_nothing or not all(name.startswith(READ_LATER) for name in given):
            return subprocess.run(
                command(arguments),
                cwd=cwd,
                env=variables,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout,
            )
        with NamedTemporaryFile("r") as out, NamedTemporaryFile("r") as err:
            child = warm.start(arguments, cwd=cwd, variables=variables, out=out.name, err=err.name)
            try:
                code = child.wait(timeout)
            finally:
                warm.kill()
            return subprocess.CompletedProcess(command(arguments), code, out.read(), err.read())

    return run


@pytest.fixture
def program(run_in: Program, tmp_path: Path) -> Program:
    """The same in an empty folder: `program("evaluate", "policy=random")`."""
    return functools.partial(run_in, tmp_path)


def command(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "rl_experiments", *arguments]
