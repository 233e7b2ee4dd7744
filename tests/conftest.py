"""How the tests run the program: as a user does, in a process of its own, in an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

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


@pytest.fixture(scope="session")
def program_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variables of the programs that the tests run; the cache is the tests' own."""
    cache = tmp_path_factory.mktemp("cache")
    quiet = {"XDG_CACHE_HOME": str(cache), "COLUMNS": "120"}
    return {**os.environ, **quiet, "HF_HUB_OFFLINE": "1"}


@pytest.fixture
def program(tmp_path: Path, program_environment: dict[str, str]) -> Program:
    """`program("evaluate", "policy=random")` runs the command line in an empty folder."""

    def run(
        *arguments: str, cwd: Path = tmp_path, timeout: float = 300, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(arguments),
            cwd=cwd,
            env={**program_environment, **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


def command(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "rl_experiments", *arguments]
