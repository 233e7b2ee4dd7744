"""The launcher's copies of the functions that write files, and its own ones."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from hydra_modal_jobs import files as launcher_files

from rl_experiments.storage import files


@pytest.mark.parametrize(
    "name", ["atomic_path", "write_atomically", "append_json_lines", "read_json_lines", "_naming"]
)
def test_the_copies_are_equal(name: str) -> None:
    """The tests in tests/rl_experiments/storage hold for both."""
    copies = [inspect.getsource(getattr(module, name)) for module in (files, launcher_files)]
    assert copies[0] == copies[1]


def test_the_last_whole_line_of_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert launcher_files.last_json_line(path) is None
    launcher_files.append_json_lines(path, ({"step": step} for step in range(20_000)))
    with path.open("a") as file:
        file.write('{"step": 20')
    assert launcher_files.last_json_line(path) == {"step": 19_999}


def test_a_file_that_was_cut_off_reads_as_none(tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    assert launcher_files.read_json(path) is None
    path.write_text('{"num": ')
    assert launcher_files.read_json(path) is None
