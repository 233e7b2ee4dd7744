"""The folder of a run that somebody else made: it is read as plain data, and runs nothing."""

from __future__ import annotations

import base64
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import hydra_modal_jobs
import modal
import pytest
from hydra_modal_jobs import LaunchRefused
from hydra_modal_jobs.backends import modal_volume
from hydra_modal_jobs.jobs.seal import SEAL, is_sealed, seal

Change = Callable[[dict[str, Any], dict[str, Any]], None]


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def a_run(folder: Path, change: Change = lambda launch, job: None, *, ended: str = "done") -> Path:
    """Write the folder of a run of one job as another machine would; return it."""
    entry: dict[str, Any] = {
        **{"num": 0, "overrides": ["x=1"], "subdir": "0"},
        **{"backend": "local", "launch": "a", "call": None},
    }
    launch = {"name": "theirs", "created": "then", "jobs": [entry]}
    job = {
        "num": 0,
        "overrides": ["x=1"],
        "dir": str(folder),
        "subdir": "0",
        "task": {"name": "json:dumps", "unwrap": 0, "folder": str(folder)},
        "config": "x: 1\nhydra: {launcher: {metric: win rate, gpu: local}}",
        "types": {},
        "resolvers": {},
        "version_base": None,
    }
    change(entry, job)
    (folder / "0/.job").mkdir(parents=True)
    (folder / "launch.json").write_text(json.dumps(launch))
    (folder / "0/.job/job.json").write_text(json.dumps(job))
    result = {"state": ended, "launch": "a", "value": 0.25}
    (folder / "0/.job/result.json").write_text(json.dumps(result))
    return folder


def pickled(mark: Path) -> str:
    return base64.b64encode(pickle.dumps(Evil(mark))).decode()


def changes(tmp_path: Path) -> dict[str, Change]:
    """Return the ways in which the files can hold or name code, each of which makes `ran`."""
    mark = tmp_path / "ran"
    module = f"import pathlib; pathlib.Path({str(mark)!r}).touch()"
    (tmp_path / "runs/theirs").mkdir(parents=True)
    (tmp_path / "runs/theirs/evil_module.py").write_text(module)

    def backend(entry: dict[str, Any], job: dict[str, Any]) -> None:
        entry["backend"] = "evil_module:Backend"

    return {
        "resolver": lambda entry, job: job.update(resolvers={"innocent": pickled(mark)}),
        "task": lambda entry, job: job["task"].update(pickle=pickled(mark)),
        "type": lambda entry, job: job.update(types={"": "evil_module:Schema"}),
        "module": lambda entry, job: job["task"].update(name="evil_module:main"),
        "backend": backend,
    }


@pytest.mark.parametrize("what", ["resolver", "task", "type", "module", "backend"])
def test_no_command_runs_what_the_files_hold_or_name(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    change = changes(tmp_path)[what]
    run = a_run(tmp_path / "runs/theirs", change, ended="failed")
    monkeypatch.syspath_prepend(str(run)) if what == "backend" else None
    for words in (["logs"], ["pull"], ["cancel"], ["attach"]):
        try:
            hydra_modal_jobs.runs([*words, "theirs"], root=tmp_path / "runs")
        except (LaunchRefused, hydra_modal_jobs.JobFailed) as error:
            assert "\n" not in str(error)
    with pytest.raises(LaunchRefused, match=r"job\.json: this machine did not write .* --trust"):
        hydra_modal_jobs.resume(["theirs"], root=tmp_path / "runs")
    assert not (tmp_path / "ran").exists()
    if what != "backend":
        assert "win rate" in capsys.readouterr().out  # its own settings, as far as they are plain


def test_a_run_whose_jobs_are_done_needs_no_trust_to_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a_run(tmp_path / "theirs", changes(tmp_path)["resolver"])
    hydra_modal_jobs.resume(["theirs"], root=tmp_path)
    printed = capsys.readouterr().out
    assert "Every job of this run is done." in printed and "0.25" in printed
    assert not (tmp_path / "ran").exists()


def test_trust_runs_what_the_files_name(tmp_path: Path) -> None:
    a_run(tmp_path / "theirs", changes(tmp_path)["resolver"], ended="failed")
    with pytest.raises(Exception):  # noqa: B017 - reopened, it is no whole job
        hydra_modal_jobs.resume(["theirs", "--trust"], root=tmp_path)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("subdir", ["../outside", "/tmp", "link/x"])
def test_a_job_whose_folder_lies_outside_of_the_run_is_refused(tmp_path: Path, subdir: str) -> None:
    (tmp_path / "outside").mkdir()
    run = a_run(tmp_path / "theirs", lambda entry, job: entry.update(subdir=subdir))
    (run / "link").symlink_to(tmp_path / "outside")
    for action in ("attach", "logs", "cancel", "pull"):
        with pytest.raises(LaunchRefused, match="lies outside of the run"):
            hydra_modal_jobs.runs([action, "theirs"], root=tmp_path)
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_seal_is_this_machines_and_for_this_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    payload = {"task": {"name": "a:b"}, "gpus": ("T4", 1), "none": None}
    sealed = json.loads(json.dumps({**payload, SEAL: seal(payload)}))
    assert is_sealed(sealed)
    assert not is_sealed({**sealed, "task": {"name": "a:c"}})
    assert not is_sealed(payload) and not is_sealed({**payload, SEAL: None})
    key = tmp_path / "state/hydra-modal-jobs/key"
    assert key.stat().st_mode & 0o077 == 0
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another"))
    assert not is_sealed(sealed)
    monkeypatch.setenv("XDG_STATE_HOME", os.devnull)
    assert not is_sealed({**payload, SEAL: seal(payload)})


@pytest.mark.parametrize(
    ("name", "is_fetched"),
    [
        ("log.txt", True),
        ("a/b/metrics.jsonl", True),
        ("launch.json", True),
        ("../../../outside.txt", False),
        ("link/outside.txt", False),
        ("/outside.txt", False),
        (".job/job.json", False),
        ("./.job//job.json", False),
    ],
)
def test_pull_writes_only_into_the_jobs_folder_and_never_what_resume_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, is_fetched: bool
) -> None:
    folder = tmp_path / "runs/theirs/0"
    (folder / ".job").mkdir(parents=True)
    (folder / ".job/job.json").write_text("mine")
    (folder / "link").symlink_to(tmp_path)
    path = name if name.startswith("/") else f"theirs/0/{name}"
    file = SimpleNamespace(path=path, size=4, mtime=9e9, type=SimpleNamespace(name="FILE"))
    good = SimpleNamespace(**{**vars(file), "path": "theirs/0/good.txt"})
    volume = SimpleNamespace(
        iterdir=lambda path, recursive: [file, good], read_file=lambda path: [b"evil"]
    )
    monkeypatch.setattr(modal.Volume, "from_name", lambda name: volume)
    entry = {"volume": "v", "remote": "/outputs/theirs/0", "mount": "/outputs", "skip": ""}
    try:
        fetched = modal_volume.pull(entry, folder, checkpoints=False)
    except LaunchRefused as refused:
        assert "outside of" in str(refused)
        fetched = ["good.txt"]
    assert fetched == ([str(PurePosixPath(name)), "good.txt"] if is_fetched else ["good.txt"])
    assert (folder / "good.txt").read_text() == "evil"
    assert (folder / ".job/job.json").read_text() == "mine"
    assert not (tmp_path / "outside.txt").exists()
