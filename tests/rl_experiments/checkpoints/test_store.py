"""The checkpoint store against real S3 servers, with faults between: nothing is lost."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rl_experiments.checkpoints.local import latest_valid
from rl_experiments.checkpoints.manifest import CorruptCheckpoint, verify
from rl_experiments.checkpoints.retention import RetentionPolicy
from rl_experiments.checkpoints.store import (
    CheckpointStore,
    find_resume_point,
    read_fingerprints,
    remember_fingerprint,
)
from rl_experiments.errors import UserError
from tests.support.faults import FaultProxy
from tests.support.stores import (
    contents,
    make_checkpoint,
    moto,
    open_store,
    proxy,
    rclone,
    store_url,
    surroundings,
    until,
)

__all__ = ["moto", "proxy", "rclone", "store_url", "surroundings"]  # fixtures


@pytest.mark.slow
def test_what_is_pushed_comes_back_as_it_was(store_url: str, tmp_path: Path) -> None:
    store, run, hashes = open_store(store_url), tmp_path / "run", tmp_path / "hashes.json"
    checkpoints = {step: make_checkpoint(run, step) for step in (2, 10)}
    for checkpoint in checkpoints.values():
        store.push(checkpoint)
        remember_fingerprint(hashes, checkpoint)
    assert store.steps() == [2, 10]
    again = open_store(store_url)
    resumed = find_resume_point(again, tmp_path / "new", fingerprints=hashes, say=pytest.fail)
    assert resumed and (resumed.step, resumed.left_out) == (10, [])
    assert contents(resumed.folder) == contents(checkpoints[10])
    assert latest_valid(tmp_path / "new") == resumed.folder
    again.push(resumed.folder)
    assert again.prune(RetentionPolicy(latest=1), newest=10) == [2]
    assert again.steps() == [10]


def test_what_torch_would_unpickle_must_be_the_runs_own(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    checkpoint = make_checkpoint(tmp_path / "run", 1)
    store.push(checkpoint)
    downloaded = store.fetch(1, tmp_path / "new", known={})
    assert downloaded.left_out == ["optimizer.pt"]
    expected = contents(checkpoint)
    del expected["optimizer.pt"]
    assert contents(downloaded.folder) == expected
    assert verify(downloaded.folder)
    store.push(downloaded.folder)  # a part must not replace the whole
    assert store.fetch(1, tmp_path / "new", known={}, trusted=True).left_out == []
    with pytest.raises(CorruptCheckpoint, match="not the one that this run wrote"):
        store.fetch(1, tmp_path / "new", known={1: ["another"]})


def test_fingerprints_of_before_the_format_had_a_version_are_read(tmp_path: Path) -> None:
    hashes = tmp_path / "hashes.json"
    hashes.write_text('{"1": ["aa", "bb"]}')
    assert read_fingerprints(hashes) == {1: ["aa", "bb"]}
    remember_fingerprint(hashes, make_checkpoint(tmp_path, 2))
    assert json.loads(hashes.read_text())["format_version"] == 1
    known = read_fingerprints(hashes)
    assert known[1] == ["aa", "bb"] and len(known[2]) == 1


@pytest.mark.slow
def test_a_checkpoint_that_the_store_has_is_not_sent_again(
    proxy: FaultProxy, tmp_path: Path
) -> None:
    store = open_store()
    store.push(make_checkpoint(tmp_path, 1, size=40 << 20))  # in several parts
    proxy.requests.clear()
    store.push(tmp_path / "checkpoint-1")
    assert proxy.puts() == []
    open_store().push(tmp_path / "checkpoint-1")
    assert not any("/000001/" in path for path in proxy.puts())


@pytest.mark.slow
def test_a_job_killed_during_an_upload_leaves_no_checkpoint(
    proxy: FaultProxy, tmp_path: Path
) -> None:
    make_checkpoint(tmp_path, 1)
    program = f"""
from pathlib import Path
from rl_experiments.checkpoints.store import CheckpointStore
store = CheckpointStore.open("s3://bucket/prefix", project="project", name="run", setting="")
store.push(Path({str(tmp_path / "checkpoint-1")!r}))
"""
    job = subprocess.Popen([sys.executable, "-c", program])

    def kill(method: str, path: str) -> None:
        if method == "PUT" and path.endswith("manifest.json"):
            assert {"000001/model.safetensors", "000001/optimizer.pt"} <= set(sent())
            job.kill()
            job.wait()
            proxy.refuses["PUT"] = "AccessDenied"  # the manifest does not arrive

    def sent() -> list[str]:
        return [path.partition("/run/")[2] for path in proxy.puts()]

    proxy.before = kill
    assert job.wait(300) == -signal.SIGKILL
    until(lambda: "000001/manifest.json" in sent())
    proxy.before, proxy.refuses = lambda method, path: None, {}
    store = open_store()
    assert store.steps() == []
    hashes = tmp_path / "hashes.json"
    assert not find_resume_point(store, tmp_path / "new", fingerprints=hashes, say=pytest.fail)
    store.push(make_checkpoint(tmp_path, 2))
    assert store.prune(RetentionPolicy(), newest=2) == [1]  # what was left of it


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["missing", "truncated", "tampered", "manifest", "outside"])
def test_a_damaged_checkpoint_is_named_and_passed_over(
    proxy: FaultProxy, tmp_path: Path, damage: str
) -> None:
    store, hashes = open_store(), tmp_path / "hashes.json"
    for step in (1, 2):
        checkpoint = make_checkpoint(tmp_path / "run", step)
        store.push(checkpoint)
        remember_fingerprint(hashes, checkpoint)
    model, manifest = "000002/model.safetensors", "000002/manifest.json"
    if damage == "missing":
        store.objects.remove(model)
    elif damage == "manifest":
        store.objects.write(manifest, '{"step": 2, "files": [')
    elif damage == "outside":
        content = json.loads(store.objects.read(manifest))
        content["files"]["../../evil.txt"] = content["files"].pop("more/step.txt")
        store.objects.write(manifest, json.dumps(content))
    else:
        store.objects.write(model, "x" * (100_000 if damage == "tampered" else 60_000))
    messages: list[str] = []
    new = tmp_path / "new"
    resumed = find_resume_point(store, new, fingerprints=hashes, say=messages.append)
    assert resumed and resumed.step == 1
    assert contents(resumed.folder) == contents(tmp_path / "run" / "checkpoint-1")
    label = "Step 2 in checkpoint.store=s3://bucket/prefix: "
    assert len(messages) == 1 and messages[0].startswith(label)
    assert [path.name for path in new.iterdir()] == ["checkpoint-1"]
    # The run comes to step 2 again, by the same way, and uploads the same files.
    store.push(tmp_path / "run" / "checkpoint-2")
    again = find_resume_point(store, new, fingerprints=hashes, say=pytest.fail)
    assert again and again.step == 2


def test_a_damaged_local_checkpoint_is_downloaded_anew(tmp_path: Path) -> None:
    store, run = open_store(str(tmp_path / "store")), tmp_path / "run"
    hashes = tmp_path / "hashes.json"
    checkpoint = make_checkpoint(run, 1)
    store.push(checkpoint)
    remember_fingerprint(hashes, checkpoint)
    whole = contents(checkpoint)
    (checkpoint / "optimizer.pt").write_bytes(b"")
    messages: list[str] = []
    resumed = find_resume_point(store, run, fingerprints=hashes, say=messages.append)
    assert resumed and contents(resumed.folder) == whole
    assert len(messages) == 1 and "checkpoint-1 is unfinished or damaged" in messages[0]


def test_what_a_killed_download_left_is_removed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    make_checkpoint(run, 1)
    (run / ".checkpoint-2.1234-5678.tmp").mkdir()
    (run / ".checkpoint-2.1234-5678.tmp/model.safetensors").touch()
    find_resume_point(None, run, fingerprints=tmp_path / "hashes.json", say=pytest.fail)
    assert [path.name for path in run.iterdir()] == ["checkpoint-1"]


def test_later_steps_of_a_run_that_was_set_back_are_kept(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    for step in (1, 2, 9):
        store.push(make_checkpoint(tmp_path, step))
    assert store.prune(RetentionPolicy(1), newest=2) == [1]
    assert store.steps() == [2, 9]


@pytest.mark.parametrize(
    "name", ["../up", "a/b", "", ".hidden", "a b", "a\n", "a" * 300, "ü", "-a"]
)
def test_names_that_could_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"^name=.*only letters, digits"):
        CheckpointStore.open(str(tmp_path), project="project", name=name, setting="store")
    with pytest.raises(UserError, match=r"^checkpoint.project=.*only letters, digits"):
        CheckpointStore.open(str(tmp_path), project=name, name="run", setting="store")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_store_that_may_only_be_read_serves_readers(proxy: FaultProxy, tmp_path: Path) -> None:
    open_store().push(make_checkpoint(tmp_path / "run", 1))
    proxy.refuses = dict.fromkeys(("PUT", "POST", "DELETE"), "AccessDenied")
    with pytest.raises(UserError, match=r"cannot be written: these credentials .*AccessDenied"):
        open_store()
    reader = CheckpointStore.open(
        "s3://bucket/prefix", project="project", name="run", setting="store", writes=False
    )
    assert reader.fetch(1, tmp_path / "new", known={}).step == 1


@pytest.mark.slow
def test_a_full_disk_leaves_no_part_of_a_download(proxy: FaultProxy, tmp_path: Path) -> None:
    open_store().push(make_checkpoint(tmp_path / "run", 1))
    program = f"""
import resource
from pathlib import Path
from rl_experiments.checkpoints.store import CheckpointStore
address = "s3://bucket/prefix"
store = CheckpointStore.open(address, project="project", name="run", setting="", writes=False)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
store.fetch(1, Path({str(tmp_path / "new")!r}), known={{}})
"""
    job = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    last = job.stderr.splitlines()[-1]
    assert "UserError" in last and "File too large" in last and "ulimit" in last
    assert list((tmp_path / "new").iterdir()) == []
