"""How the tests run the program: as a user does, in a process and a folder of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.support.forked import ForkedProcess
from tests.support.servers import program_server

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

# Beginnings of the names of variables that libraries read while they are imported.
READ_AT_IMPORT = ("CUDA_", "HF_", "MPL", "OMP_", "TORCH", "TRACKIO_", "TRANSFORMERS_", "XDG_")

Program = Callable[..., subprocess.CompletedProcess[str]]


def command(arguments: Sequence[str]) -> list[str]:
    """Return the words that run the program with these arguments."""
    return [sys.executable, "-m", "rl_experiments", *arguments]


class WarmStarter:
    """Starts programs that have their imports done; see `forked.py`."""

    def __init__(self) -> None:
        self._server = program_server()

    def start(
        self,
        arguments: Sequence[str],
        *,
        cwd: Path,
        variables: Mapping[str, str],
        out: str | Path,
        err: str | Path,
    ) -> ForkedProcess:
        """Start `python -m rl_experiments ARGUMENTS`, which writes to the files `out` and `err`."""
        with open(out, "wb") as stdout, open(err, "wb") as stderr:
            return self._server.start(
                command(arguments)[1:],
                cwd=cwd,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
            )

    def close(self) -> None:
        """End the programs that still run."""
        self._server.close()


def run(
    warm: WarmStarter,
    environment: Mapping[str, str],
    cwd: Path,
    *arguments: str,
    timeout: float = 300,
    from_nothing: bool = False,
    **variables: str,
) -> subprocess.CompletedProcess[str]:
    """Run the program to its end; `from_nothing` has it import all its modules itself."""
    changed = [name for name, value in variables.items() if environment.get(name) != value]
    environment = {**environment, **variables}
    if from_nothing or any(name.startswith(READ_AT_IMPORT) for name in changed):
        return subprocess.run(
            command(arguments),
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
    with TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process = warm.start(arguments, cwd=cwd, variables=environment, out=out, err=err)
        try:
            status = process.wait(timeout)
        finally:
            process.kill_group()
        printed = out.read_text(), err.read_text()
    return subprocess.CompletedProcess(command(arguments), status, *printed)
