"""Failures that the user can mend end in one line; faults of the program keep their traceback."""

from __future__ import annotations

import errno
import os

import pytest
from omegaconf import DictConfig, OmegaConf

from rl_experiments.commands.job import job, user_message
from rl_experiments.errors import UserError


def failing(error: Exception) -> BaseException:
    """Return what a job raises in whose function this error is raised."""

    @job
    def function(cfg: DictConfig) -> float:
        raise error

    with pytest.raises(Exception) as raised:
        function(OmegaConf.create({"a": 1}))
    return raised.value


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (
            errno.ENOSPC,
            "runs/a/0: No space left on device; free some space, then run the same command with "
            "resume=true",
        ),
        (
            errno.EFBIG,
            "runs/a/0: File too large; raise the limit on file sizes (ulimit -f), then run the "
            "same command with resume=true",
        ),
        (
            errno.EROFS,
            "runs/a/0: Read-only file system; choose another folder with hydra.sweep.dir=..., "
            "then run the same command with resume=true",
        ),
    ],
)
def test_a_disk_that_cannot_be_written_is_named_with_what_to_do(number: int, line: str) -> None:
    error = OSError(number, os.strerror(number), "runs/a/0")
    assert user_message(error) == line
    raised = failing(error)
    assert isinstance(raised, UserError) and str(raised) == line and raised.__cause__ is error


@pytest.mark.parametrize(
    "error", [OSError(errno.ECONNRESET, "Connection reset"), RuntimeError("a bug"), KeyError("a")]
)
def test_a_fault_of_the_program_is_raised_as_it_is(error: Exception) -> None:
    assert user_message(error) is None
    assert failing(error) is error


def test_a_message_for_the_user_is_raised_as_it_is() -> None:
    error = UserError("seed=-1: must be from 0")
    assert failing(error) is error


def test_a_setting_that_a_job_misses_is_named() -> None:
    @job
    def function(cfg: DictConfig) -> float:
        return float(cfg.trainer.learning_rate)

    with pytest.raises(UserError, match=r"^trainer\.learning_rate: a value is missing; give "):
        function(OmegaConf.create({"trainer": {"learning_rate": "???"}}))
