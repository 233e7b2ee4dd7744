"""Fixtures for all tests: the program as a user runs it."""

from __future__ import annotations

import functools
import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.program import Program, WarmStarter, run
from tests.support.servers import program_variables

# Two processes with two threads each would spend their time waiting for one another.
os.environ["OMP_NUM_THREADS"] = "1"

# A test with one of these fixtures starts programs, which takes about a second each.
FIXTURES_OF_PROGRAMS = {"program_environment", "plane", "place"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that start programs as slow."""
    for item in items:
        if FIXTURES_OF_PROGRAMS.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """Spare the garbage collector the modules, which stay; it would visit them over and over."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def program_environment() -> dict[str, str]:
    """The variables of the programs that the tests run."""
    return program_variables()


@pytest.fixture(scope="session")
def warm(program_environment: dict[str, str]) -> Iterator[WarmStarter]:
    """Starts the program in the background, with its imports done."""
    starter = WarmStarter()
    yield starter
    starter.close()


@pytest.fixture(scope="session")
def run_in(warm: WarmStarter, program_environment: dict[str, str]) -> Program:
    """Runs the program in a folder: `run_in(folder, "evaluate", "policy=random")`."""
    return functools.partial(run, warm, program_environment)


@pytest.fixture
def program(run_in: Program, tmp_path: Path) -> Program:
    """Runs the program in an empty folder: `program("evaluate", "policy=random")`."""
    return functools.partial(run_in, tmp_path)
