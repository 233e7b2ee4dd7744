"""One command at a time writes a run's folder; a refused or withdrawn one leaves no mark on it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hydra_modal_jobs.claim import claim_run
from hydra_modal_jobs.errors import LaunchRefused

from tests.support.launching import Client, settings, wait_for

HOLD = "import sys, pathlib; from hydra_modal_jobs import claim_run; "
HOLD += "claim_run(pathlib.Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"


def tree(folder: Path) -> dict[str, bytes | None]:
    """Return the content of every file under the folder; None for a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def test_a_folder_that_another_process_has_claimed_is_refused_without_a_mark(
    tmp_path: Path,
) -> None:
    run = tmp_path / "runs/x"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": ":".join(sys.path)},
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        before = tree(tmp_path)
        with pytest.raises(LaunchRefused, match="another command is at work on this run"):
            claim_run(run)
        assert tree(tmp_path) == before
    claim = claim_run(run)  # the other process has ended, and left nothing
    assert not claim.was_used
    claim.undo()
    assert list(tmp_path.iterdir()) == []


def test_undo_restores_what_was_there_and_removes_only_what_was_made(tmp_path: Path) -> None:
    run = tmp_path / "project"
    (run / "notes").mkdir(parents=True)
    (run / "notes/thesis.txt").write_text("mine")
    (run / "launch.json").write_text("old")
    before = tree(tmp_path)
    claim = claim_run(run)
    assert claim.was_used
    for name in ("launch.json", "notes/.job/job.json", "1/.job/job.json", "multirun.yaml"):
        claim.will_write(run / name)
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("new")
    claim.undo()
    assert tree(tmp_path) == before


def test_what_was_kept_stays(tmp_path: Path) -> None:
    claim = claim_run(tmp_path / "runs/x")
    claim.will_write(claim.folder / "launch.json")
    (claim.folder / "launch.json").write_text("new")
    claim.keep()
    claim.undo()
    assert (claim.folder / "launch.json").read_text() == "new"
    assert claim_run(tmp_path / "runs/x") is claim


@pytest.mark.slow
def test_a_second_command_on_a_run_leaves_no_mark(client: Client) -> None:
    first = client.start("gpu=local", "steps=400", "seconds=0.1")
    wait_for((client.job() / "metrics.jsonl").exists)
    run = client.job().parent
    before = {name: (run / name).read_bytes() for name in ("launch.json", "multirun.yaml")}
    for again in (
        client.launch("gpu=local", "x=9", *settings(resume=True), code=1),
        client.runs("resume", "toy", code=1),
    ):
        assert "another command is at work on this run" in again.err
    assert {name: (run / name).read_bytes() for name in before} == before
    assert not (client.job() / "error.txt").exists()
    assert first.process.poll() is None
    first.interrupt()
    first.to_end(code=130)


@pytest.mark.slow
def test_a_withdrawn_launch_leaves_the_files_of_others(client: Client) -> None:
    (client.folder / "project/notes").mkdir(parents=True)
    (client.folder / "project/notes/thesis.txt").write_text("mine")
    client.launch(
        "gpu=t4",
        "hydra.sweep.dir=project",
        "hydra.sweep.subdir=notes",
        *settings(secrets__modal=["no-such-secret"]),
        code=1,
    )
    assert tree(client.folder / "project") == {"notes": None, "notes/thesis.txt": b"mine"}
