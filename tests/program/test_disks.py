"""Folders that cannot be written and disks that fill: one line, then resume."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.support.program import SMALL, Program, command
from tests.support.results import json_lines
from tests.support.runner import LONGER, Runner, one_line, runner

__all__ = ["runner"]  # a fixture


def steps(file: Path) -> list[int]:
    """Return the steps of the file's records."""
    return [record["step"] for record in json_lines(file)]


def test_runs_that_is_a_file(program: Program, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    arguments = ["evaluate", "policy=random", "num_examples=5", "name=a"]
    done = program(*arguments)
    assert done.returncode == 1 and done.stdout == ""
    line = one_line(done.stderr)
    assert "runs" in line and "hydra.sweep.dir=" in line
    elsewhere = program(*arguments, "hydra.sweep.dir=elsewhere")
    assert elsewhere.returncode == 0, elsewhere.stderr
    assert (tmp_path / "elsewhere/0/evaluation.json").exists()


def namespace() -> list[str] | None:
    """Return the words before a command that let it mount, or None where that is not allowed."""
    for words in (["unshare", "--mount"], ["unshare", "--map-root-user", "--mount"]):
        try:
            tried = subprocess.run([*words, "mount", "-t", "tmpfs", "none", "/mnt"], timeout=20)
        except OSError:
            return None
        if tried.returncode == 0:
            return words
    return None


needs_mount = pytest.mark.skipif(namespace() is None, reason="nothing can be mounted here")


def run_mounted(runner: Runner, script: str, arguments: list[str]) -> None:
    """Run a shell script that may mount on `runs`, with the program as "$@"."""
    (runner.folder / "runs").mkdir()
    words = [*(namespace() or []), "sh", "-ec", script, "sh", *command(arguments)]
    subprocess.run(words, cwd=runner.folder, env=runner.environment, check=True, timeout=300)


@needs_mount
def test_runs_that_is_read_only(runner: Runner, tmp_path: Path) -> None:
    script = 'mount -t tmpfs -o ro none runs; "$@" >out 2>err || echo $? >code'
    run_mounted(runner, script, ["evaluate", "policy=random", "num_examples=5", "name=a"])
    assert (tmp_path / "code").read_text() == "1\n"
    line = one_line((tmp_path / "err").read_text())
    assert "Read-only file system" in line and "hydra.sweep.dir=" in line


def check_whole(checkpoints: Path, expected: list[int]) -> None:
    """Assert that just these checkpoints are sealed, and have the files of their manifests."""
    sealed = {int(m.parent.name.split("-")[1]): m for m in checkpoints.glob("*/manifest.json")}
    assert sorted(sealed) == expected
    for manifest in sealed.values():
        for name, (size, _) in json.loads(manifest.read_text())["files"].items():
            assert (manifest.parent / name).stat().st_size == size


@needs_mount
def test_a_disk_that_fills_during_training(runner: Runner, tmp_path: Path) -> None:
    # Room for two checkpoints of 1.3 MB and no third.
    script = """
        mount -t tmpfs -o size=3500k none runs
        "$@" >out1 2>err1 || echo $? >code
        cp -r runs full
    """
    arguments = ["train", *LONGER, "trainer.max_steps=8", "num_examples=4", "name=a"]
    run_mounted(runner, script, arguments)
    assert (tmp_path / "code").read_text() == "1\n", (tmp_path / "out1").read_text()
    line = one_line((tmp_path / "err1").read_text())
    assert "No space left" in line and "free some space" in line and "resume=true" in line
    run = tmp_path / "runs/a/0"
    (tmp_path / "runs").rmdir()  # what was mounted there is gone with its namespace
    (tmp_path / "full").rename(tmp_path / "runs")  # the same files on a disk with room
    check_whole(run / "checkpoints", [2, 4])
    assert steps(run / "metrics.jsonl")[:2] == [2, 4]

    printed = runner.run(*arguments, "resume=true")
    assert "train step 6/8" in printed
    assert "train step 4/8" not in printed
    assert runner.errors == ""
    assert steps(run / "metrics.jsonl") == [2, 4, 6, 8]
    check_whole(run / "checkpoints", [2, 4, 6, 8])
    assert (run / "evaluation.json").exists()


# Above the model's file, below the optimizer's.
LIMITED = """
import resource

resource.setrlimit(resource.RLIMIT_FSIZE, (500 * 1024, 500 * 1024))
"""


def test_a_limit_on_file_sizes(runner: Runner, tmp_path: Path) -> None:
    arguments = ["train", *SMALL, "name=a"]
    runner.run(*arguments, "trainer.max_steps=2")
    checkpoints = tmp_path / "runs/a/0/checkpoints"
    more = [*arguments, "resume=true"]
    limited = Runner(tmp_path, runner.environment, runner.warm)
    limited.before_it_starts(LIMITED)
    limited.start(more).to_end(code=1)
    line = one_line(limited.errors)
    assert "File too large" in line and "ulimit -f" in line and "resume=true" in line
    check_whole(checkpoints, [2])
    runner.run(*more)
    check_whole(checkpoints, [2, 4])
    assert steps(tmp_path / "runs/a/0/metrics.jsonl") == [2, 4]
