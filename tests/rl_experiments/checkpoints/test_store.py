"""The checkpoint store against real S3 servers, with faults between: nothing is lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rl_experiments.checkpoints import local as checkpoint
from rl_experiments.checkpoints.lease import Lease, LeaseLost
from rl_experiments.checkpoints.local import CorruptCheckpoint, RetentionPolicy, seal
from rl_experiments.checkpoints.store import CheckpointStore, newest, remember
from rl_experiments.checkpoints.uploader import Uploader, push_run
from rl_experiments.errors import UserError
from tests.support.faults import FaultProxy
from tests.support.stores import SECRET, moto, proxy, rclone, surroundings, until

__all__ = ["moto", "proxy", "rclone", "surroundings"]  # fixtures

SETTING = "checkpoint.store"
TOKENIZER = "token " * 20_000


@pytest.fixture(params=["moto", "rclone", "folder"])
def url(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "store")
    if request.param == "moto":
        request.getfixturevalue("proxy")
    else:
        monkeypatch.setenv("AWS_ENDPOINT_URL", request.getfixturevalue("rclone"))
    return f"s3://bucket/{tmp_path.name}"


def open_store(url: str = "s3://bucket/prefix", name: str = "run") -> CheckpointStore:
    store = CheckpointStore.open(url, project="project", name=name, setting=SETTING)
    store.objects.pause = 0.05
    return store


def impatient(store: CheckpointStore) -> CheckpointStore:
    """One that soon finds that the store is down."""
    store.objects.patience, store.objects.fs.retries = 0.4, 1
    return store


def make(folder: Path, step: int, *, size: int = 100_000, score: float = 0.0) -> Path:
    """A sealed checkpoint; all but the tokenizer is of this step alone."""
    made = folder / f"checkpoint-{step}"
    (made / "more").mkdir(parents=True)
    (made / "model.safetensors").write_bytes(os.urandom(size))
    (made / "tokenizer.json").write_text(TOKENIZER)
    (made / "optimizer.pt").write_bytes(os.urandom(1000))
    (made / "more" / "step.txt").write_text(str(step))
    return seal(folder, step=step, metrics={"score": score})


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_what_is_pushed_comes_back_as_it_was(url: str, tmp_path: Path) -> None:
    store, run = open_store(url), tmp_path / "run"
    made = {step: make(run, step) for step in (2, 10)}
    for folder in made.values():
        store.push(folder)
        remember(tmp_path / "hashes.json", folder)
    assert store.steps() == [2, 10]
    again = open_store(url)
    found = newest(again, tmp_path / "new", hashes=tmp_path / "hashes.json", say=pytest.fail)
    assert found and (found.step, found.left_out) == (10, [])
    assert contents(found.folder) == contents(made[10])
    assert checkpoint.latest(tmp_path / "new") == found.folder
    again.push(found.folder)
    assert again.prune(RetentionPolicy(latest=1), newest=10) == [2]
    assert again.steps() == [10]


def test_what_torch_would_unpickle_needs_the_runs_own_word(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    made = make(tmp_path / "run", 1)
    store.push(made)
    found = store.fetch(1, tmp_path / "new", known={})
    assert found.left_out == ["optimizer.pt"]
    assert contents(found.folder) == {
        name: data for name, data in contents(made).items() if name != "optimizer.pt"
    }
    assert checkpoint.is_whole(found.folder)
    store.push(found.folder)  # half of it must not replace the whole
    assert store.fetch(1, tmp_path / "new", known={}, trusted=True).left_out == []
    with pytest.raises(CorruptCheckpoint, match="not the one that this run wrote"):
        store.fetch(1, tmp_path / "new", known={1: ["another"]})


def test_the_same_is_not_sent_again(proxy: FaultProxy, tmp_path: Path) -> None:
    store = open_store()
    store.push(make(tmp_path, 1, size=40 << 20))  # in several parts
    proxy.requests.clear()
    store.push(tmp_path / "checkpoint-1")
    assert proxy.puts() == []
    open_store().push(tmp_path / "checkpoint-1")
    assert not any("checkpoint" in path for path in proxy.puts())
    (moved,) = (info for key, info in store.objects.list().items() if "model" in key)
    assert "-" in moved["ETag"]
    store.push(make(tmp_path, 2))
    assert proxy.copies == ["bucket/prefix/project/models/run/000001/tokenizer.json"]


def test_a_job_killed_on_the_way_leaves_no_checkpoint(proxy: FaultProxy, tmp_path: Path) -> None:
    make(tmp_path, 1)
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
            proxy.refuses["PUT"] = "AccessDenied"  # what it was about to say is not said

    def sent() -> list[str]:
        return [path.partition("/run/")[2] for path in proxy.puts()]

    proxy.before = kill
    assert job.wait(30) == -signal.SIGKILL
    until(lambda: "000001/manifest.json" in sent())
    proxy.before, proxy.refuses = lambda method, path: None, {}
    store = open_store()
    assert store.steps() == []
    assert newest(store, tmp_path / "new", hashes=tmp_path / "h", say=pytest.fail) is None
    store.push(make(tmp_path, 2))
    assert store.prune(RetentionPolicy(), newest=2) == [1]  # what was left of it


@pytest.mark.parametrize("harm", ["missing", "truncated", "tampered", "manifest", "outside"])
def test_a_harmed_checkpoint_is_named_and_passed_over(
    proxy: FaultProxy, tmp_path: Path, harm: str
) -> None:
    store = open_store()
    for step in (1, 2):
        store.push(make(tmp_path / "run", step))
        remember(tmp_path / "hashes.json", tmp_path / "run" / f"checkpoint-{step}")
    model, manifest = "000002/model.safetensors", "000002/manifest.json"
    if harm == "missing":
        store.objects.remove(model)
    elif harm == "manifest":
        store.objects.write(manifest, '{"step": 2, "files": [')
    elif harm == "outside":
        told = json.loads(store.objects.read(manifest))
        told["files"]["../../evil.txt"] = told["files"].pop("more/step.txt")
        store.objects.write(manifest, json.dumps(told))
    else:
        store.objects.write(model, "x" * (100_000 if harm == "tampered" else 60_000))
    said: list[str] = []
    found = newest(store, tmp_path / "new", hashes=tmp_path / "hashes.json", say=said.append)
    assert found and found.step == 1
    assert contents(found.folder) == contents(tmp_path / "run" / "checkpoint-1")
    assert len(said) == 1 and said[0].startswith(f"Step 2 in {SETTING}=s3://bucket/prefix: ")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["checkpoint-1"]
    # The run comes to step 2 again, by the same way.
    store.push(tmp_path / "run" / "checkpoint-2")
    again = newest(store, tmp_path / "new", hashes=tmp_path / "hashes.json", say=pytest.fail)
    assert again and again.step == 2


def test_a_torn_local_checkpoint_is_fetched_anew(tmp_path: Path) -> None:
    store, run = open_store(str(tmp_path / "store")), tmp_path / "run"
    store.push(make(run, 1))
    remember(tmp_path / "hashes.json", run / "checkpoint-1")
    whole = contents(run / "checkpoint-1")
    (run / "checkpoint-1" / "optimizer.pt").write_bytes(b"")
    said: list[str] = []
    found = newest(store, run, hashes=tmp_path / "hashes.json", say=said.append)
    assert found and contents(found.folder) == whole
    assert len(said) == 1 and "checkpoint-1 is torn" in said[0]


def test_thirty_percent_of_faults_lose_nothing(proxy: FaultProxy, tmp_path: Path) -> None:
    store, said = open_store(), list[str]()
    proxy.rate, proxy.slow = 0.3, 0.1
    uploader = Uploader(
        store, keep=RetentionPolicy(3), hashes=tmp_path / "hashes.json", say=said.append
    )
    for step in (1, 2, 3):
        uploader.submit(make(tmp_path / "run", step))
    assert uploader.close(60) == []
    assert store.steps() == [1, 2, 3]
    for step in (1, 2, 3):
        found = store.fetch(step, tmp_path / "new", known={}, trusted=True)
        assert contents(found.folder) == contents(tmp_path / "run" / f"checkpoint-{step}")
    assert len(proxy.faults) > 8 and len(set(proxy.faults)) > 3


def test_it_catches_up_after_an_outage(proxy: FaultProxy, tmp_path: Path) -> None:
    store, said = impatient(open_store()), list[str]()
    uploader = Uploader(
        store,
        keep=RetentionPolicy(2),
        hashes=tmp_path / "hashes",
        say=said.append,
        longest_pause=0.2,
    )
    proxy.down = True
    begun = time.monotonic()
    for step in range(1, 6):
        uploader.submit(make(tmp_path, step))
    assert time.monotonic() - begun < 1  # training is not held up
    until(lambda: len(said) == 1)
    assert "Training goes on" in said[0]
    assert {4, 5} <= uploader.held() <= {1, 4, 5}  # what the rules would keep, and what moves
    uploader.submit(make(tmp_path, 6))
    time.sleep(1)
    assert len(said) == 1  # once
    proxy.down, store.objects.patience = False, 20
    until(lambda: not uploader.held(), 60)
    assert uploader.close(10) == []
    assert store.steps() == [5, 6]
    assert len(said) == 2 and "answers again" in said[1]


def test_what_a_dead_store_lacks_is_told_in_time(proxy: FaultProxy, tmp_path: Path) -> None:
    store, said = open_store(), list[str]()
    uploader = Uploader(store, keep=RetentionPolicy(2), hashes=tmp_path / "hashes", say=said.append)
    uploader.submit(make(tmp_path, 1))
    until(lambda: not uploader.held())
    proxy.down = True
    for step in (2, 3):
        uploader.submit(make(tmp_path, step))
    begun = time.monotonic()
    assert uploader.close(1) == [2, 3]
    assert time.monotonic() - begun < 3
    proxy.down = False
    later = open_store()
    assert later.steps() == [1]
    (tmp_path / "checkpoint-4").mkdir()  # torn
    words: list[str] = []
    assert push_run(later, tmp_path, say=words.append) == [1, 2, 3]
    assert len(words) == 1 and "checkpoint-4 is torn" in words[0]
    proxy.requests.clear()
    assert push_run(later, tmp_path, say=words.append) == [1, 2, 3]
    assert proxy.puts() == []
    assert later.steps() == [1, 2, 3]


def test_a_checkpoint_deleted_before_its_upload_is_told(proxy: FaultProxy, tmp_path: Path) -> None:
    store, said = impatient(open_store()), list[str]()
    proxy.down = True
    uploader = Uploader(store, keep=RetentionPolicy(2), hashes=tmp_path / "hashes", say=said.append)
    uploader.submit(make(tmp_path, 1))
    shutil.rmtree(tmp_path / "checkpoint-1")
    assert uploader.close(10) == []
    assert said[-1].endswith("checkpoint-1 was deleted before it was uploaded")


def test_keep_rules() -> None:
    scores = {step: {"val/reward": float(score)} for step, score in enumerate([3, 9, 2, 9, 1], 1)}
    assert RetentionPolicy(2).of(range(1, 7), {}) == {5, 6}
    assert RetentionPolicy(1, every=3).of(range(1, 8), {}) == {3, 6, 7}
    assert RetentionPolicy(1, best="val/reward").of(range(1, 7), scores) == {4, 6}
    assert RetentionPolicy(1, best="val/reward").of([1, 2], {1: {"val/reward": float("nan")}}) == {
        2
    }
    assert RetentionPolicy(0).of([1], {}) == {1}
    assert RetentionPolicy().of([], {}) == set()


def test_only_this_runs_old_checkpoints_are_deleted(url: str, tmp_path: Path) -> None:
    other, store = open_store(url, "other"), open_store(url)
    other.push(make(tmp_path / "other", 1))
    store.objects.write("notes/000001/mine.txt", "not a step")
    uploader = Uploader(
        store, keep=RetentionPolicy(1, best="score"), hashes=tmp_path / "hashes", say=pytest.fail
    )
    for step, score in enumerate([1, 5, 2, 3], 1):
        uploader.submit(make(tmp_path / "run", step, score=score))
        until(lambda: not uploader.held())
    assert uploader.close(10) == []
    again = open_store(url)  # which has to read the scores
    assert again.steps() == [2, 4]
    assert again.prune(RetentionPolicy(1, best="score"), newest=4) == []
    assert "notes/000001/mine.txt" in again.objects.list()
    assert other.steps() == [1]


def test_later_steps_of_a_run_that_went_back_are_left(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    for step in (1, 2, 9):
        store.push(make(tmp_path, step))
    assert store.prune(RetentionPolicy(1), newest=2) == [1]
    assert store.steps() == [2, 9]


def test_one_writer(url: str) -> None:
    store, said = open_store(url), list[str]()
    lease = Lease(store.objects, say=said.append, seconds=1.0, settle=0.2)
    lease.acquire()
    second = Lease(store.objects, say=said.append, seconds=1.0, settle=0.2)
    holder = rf"{socket.gethostname()} \(process {os.getpid()}\) has this run, until \d\d:\d\d:\d\d"
    with pytest.raises(UserError, match=holder):
        second.acquire()
    time.sleep(2.3)  # it is renewed
    with pytest.raises(UserError, match=holder):
        second.acquire()
    lease.confirm()
    lease.release()
    second.acquire()
    second.confirm()
    second.release()
    assert said == []
    assert store.objects.list() == {}


def test_a_silent_holder_loses_its_lease(url: str) -> None:
    # A machine that was suspended, or whose network is gone.
    store, said = open_store(url), list[str]()
    silent = Lease(store.objects, say=said.append, seconds=1.2, settle=0.2)
    silent._renew_always = lambda: None  # type: ignore[method-assign]
    silent.acquire()
    second = Lease(store.objects, say=said.append, settle=0.2)
    second.acquire(wait=10)
    second.confirm()
    with pytest.raises(LeaseLost, match="nothing more is uploaded"):
        silent.confirm()
    silent.release()  # which is no longer its own
    assert len(said) == 1
    third = Lease(store.objects, say=said.append)
    with pytest.raises(UserError):
        third.acquire()
    second.release()


def test_attempts_of_one_job_and_dead_processes_need_not_wait(
    proxy: FaultProxy, tmp_path: Path
) -> None:
    store = open_store()
    Lease(store.objects, say=pytest.fail, owner="job-7").acquire()
    attempt = Lease(store.objects, say=pytest.fail, owner="job-7")
    attempt.acquire()
    attempt.release()
    program = """
from rl_experiments.checkpoints.lease import Lease
from rl_experiments.checkpoints.store import CheckpointStore
store = CheckpointStore.open("s3://bucket/prefix", project="project", name="run", setting="")
Lease(store.objects, say=print).acquire()
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    assert "lease.json" in store.objects.list()
    heir = Lease(store.objects, say=pytest.fail)
    heir.acquire()
    heir.release()


def test_a_lease_outlasts_faults(proxy: FaultProxy) -> None:
    store = open_store()
    proxy.kinds = ("lost", "503")  # what was done is told to have failed
    for _ in range(3):
        proxy.rate = 0.3
        lease = Lease(store.objects, say=pytest.fail, settle=0.1)
        lease.acquire()
        lease._renew()
        lease.confirm()
        proxy.rate = 0.0
        lease.release()
    assert store.objects.list() == {}


def test_a_job_that_lost_its_lease_uploads_nothing(proxy: FaultProxy, tmp_path: Path) -> None:
    store = open_store()

    def lost() -> None:
        raise LeaseLost("another has it")

    uploader = Uploader(
        store, keep=RetentionPolicy(), hashes=tmp_path / "hashes", say=pytest.fail, guard=lost
    )
    uploader.submit(make(tmp_path, 1))
    assert uploader.close(5) == [1]
    assert store.objects.list() == {}


@pytest.mark.parametrize(
    "name", ["../up", "a/b", "", ".hidden", "a b", "a\n", "a" * 300, "ü", "-a"]
)
def test_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"^name=.*only letters, digits"):
        CheckpointStore.open(str(tmp_path), project="project", name=name, setting=SETTING)
    with pytest.raises(UserError, match=r"^checkpoint.project=.*only letters, digits"):
        CheckpointStore.open(str(tmp_path), project=name, name="run", setting=SETTING)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("gs://bucket/x", "give a folder or s3://bucket/prefix"),
        ("s3://", "give a folder or s3://bucket/prefix"),
        ("s3://bucket/../other", "give a folder or s3://bucket/prefix"),
        (f"s3://key:{SECRET}@bucket/x", "no credentials or options in the address"),
        ("s3://absent/x", "there is no such bucket"),
        ("/dev/null/store", "it cannot be written: Not a directory"),
    ],
)
def test_addresses_are_refused_in_one_line(proxy: FaultProxy, url: str, line: str) -> None:
    with pytest.raises(UserError) as refusal:
        open_store(url)
    said = str(refusal.value)
    assert said.startswith(SETTING) and line in said
    assert SECRET not in said and "\n" not in said


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wr0ng"}, "refuses the credentials (SignatureDoesNotMatch)"),
        ({"AWS_ACCESS_KEY_ID": "wr0ng"}, "refuses the credentials (InvalidAccessKeyId)"),
        ({"AWS_SECRET_ACCESS_KEY": "", "AWS_ACCESS_KEY_ID": ""}, "no credentials were found"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "the store does not answer"),
        ({"AWS_ENDPOINT_URL": "nonsense"}, "AWS_ENDPOINT_URL or the bucket's name"),
    ],
)
def test_wrong_variables_are_told_in_one_line(
    rclone: str, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], line: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", rclone)
    for name, value in variables.items():
        if value:
            monkeypatch.setenv(name, value)
        else:
            monkeypatch.delenv(name)
    with pytest.raises(UserError) as refusal:
        CheckpointStore.open("s3://bucket", project="p", name="r", setting=SETTING, patience=8)
    said = str(refusal.value)
    assert line in said and "AWS_" in said
    assert "\n" not in said and SECRET not in said and "wr0ng" not in said


def test_a_store_that_may_only_be_read_serves_readers(proxy: FaultProxy, tmp_path: Path) -> None:
    open_store().push(make(tmp_path / "run", 1))
    proxy.refuses = {"PUT": "AccessDenied"}
    with pytest.raises(UserError, match=r"cannot be written: these credentials .*AccessDenied"):
        open_store()
    reader = CheckpointStore.open(
        "s3://bucket/prefix", project="project", name="run", setting=SETTING, writes=False
    )
    assert reader.fetch(1, tmp_path / "new", known={}).step == 1


def test_a_wrong_clock_is_told(proxy: FaultProxy) -> None:
    proxy.refuses = {"GET": "RequestTimeTooSkewed"}
    with pytest.raises(UserError, match=r"the clock of this machine is wrong \(RequestTimeTooSk"):
        CheckpointStore.open("s3://bucket", project="p", name="r", setting=SETTING)


def test_a_full_disk_leaves_nothing_half_fetched(proxy: FaultProxy, tmp_path: Path) -> None:
    open_store().push(make(tmp_path / "run", 1))
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
