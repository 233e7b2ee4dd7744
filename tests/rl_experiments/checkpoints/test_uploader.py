"""Uploads beside training, over a store that is faulty, away, or not ours any more."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest

from rl_experiments.checkpoints.lease import LeaseLost
from rl_experiments.checkpoints.retention import RetentionPolicy
from rl_experiments.checkpoints.store import CheckpointStore
from rl_experiments.checkpoints.uploader import Uploader, push_all
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


def impatient(store: CheckpointStore) -> CheckpointStore:
    """Return the store, made to find out soon that it is down."""
    store.objects.patience_seconds, store.objects.fs.retries = 0.4, 1
    return store


@pytest.mark.slow
def test_thirty_percent_of_faults_lose_nothing(proxy: FaultProxy, tmp_path: Path) -> None:
    store, messages = open_store(), list[str]()
    proxy.rate, proxy.slow_seconds = 0.3, 0.1
    uploader = Uploader(
        store, policy=RetentionPolicy(3), fingerprints=tmp_path / "hashes", say=messages.append
    )
    for step in (1, 2, 3):
        uploader.submit(make_checkpoint(tmp_path / "run", step))
    assert uploader.close(300) == []
    assert store.steps() == [1, 2, 3]
    for step in (1, 2, 3):
        downloaded = store.fetch(step, tmp_path / "new", known={}, trusted=True)
        assert contents(downloaded.folder) == contents(tmp_path / "run" / f"checkpoint-{step}")
    assert len(proxy.faults) > 8 and len(set(proxy.faults)) > 3


@pytest.mark.slow
def test_uploads_catch_up_after_an_outage(proxy: FaultProxy, tmp_path: Path) -> None:
    store, messages = impatient(open_store()), list[str]()
    uploader = Uploader(
        store,
        policy=RetentionPolicy(2),
        fingerprints=tmp_path / "hashes",
        say=messages.append,
        longest_pause_seconds=0.2,
    )
    proxy.down = True
    for step in range(1, 6):
        uploader.submit(make_checkpoint(tmp_path, step))
    until(lambda: messages)
    assert "Training goes on" in messages[0]
    # What the policy would keep, and what may be on its way.
    assert {4, 5} <= uploader.held() <= {1, 2, 3, 4, 5}
    uploader.submit(make_checkpoint(tmp_path, 6))
    requests = len(proxy.requests)
    until(lambda: len(proxy.requests) > requests + 4)
    assert len(messages) == 1  # an outage is announced once
    proxy.down, store.objects.patience_seconds = False, 20
    until(lambda: not uploader.held())
    assert uploader.close(60) == []
    assert store.steps() == [5, 6]
    assert len(messages) == 2 and "answers again" in messages[1]


def test_submitting_does_not_wait_for_the_store(tmp_path: Path) -> None:
    is_allowed = threading.Event()

    def wait_until_allowed() -> None:
        is_allowed.wait(300)

    store = open_store(str(tmp_path / "store"))
    uploader = Uploader(
        store,
        policy=RetentionPolicy(2),
        fingerprints=tmp_path / "hashes",
        say=pytest.fail,
        guard=wait_until_allowed,
    )
    for step in (1, 2):
        uploader.submit(make_checkpoint(tmp_path, step))
    assert uploader.held() == {1, 2}  # both calls came back, though nothing may be sent yet
    is_allowed.set()
    assert uploader.close(60) == []
    assert store.steps() == [1, 2]


@pytest.mark.slow
def test_steps_that_a_dead_store_lacks_are_reported_and_can_be_pushed(
    proxy: FaultProxy, tmp_path: Path
) -> None:
    store, messages = open_store(), list[str]()
    uploader = Uploader(
        store, policy=RetentionPolicy(2), fingerprints=tmp_path / "hashes", say=messages.append
    )
    uploader.submit(make_checkpoint(tmp_path, 1))
    until(lambda: not uploader.held())
    proxy.down = True
    for step in (2, 3):
        uploader.submit(make_checkpoint(tmp_path, step))
    assert uploader.close(1) == [2, 3]
    proxy.down = False
    later = open_store()
    assert later.steps() == [1]
    (tmp_path / "checkpoint-4").mkdir()  # it was never finished
    messages.clear()
    assert push_all(later, tmp_path, say=messages.append) == [1, 2, 3]
    assert len(messages) == 1 and "checkpoint-4 is unfinished or damaged" in messages[0]
    proxy.requests.clear()
    assert push_all(later, tmp_path, say=messages.append) == [1, 2, 3]
    assert proxy.puts() == []
    assert later.steps() == [1, 2, 3]


def test_a_checkpoint_deleted_before_its_upload_is_reported(
    proxy: FaultProxy, tmp_path: Path
) -> None:
    store, messages = impatient(open_store()), list[str]()
    proxy.down = True
    uploader = Uploader(
        store, policy=RetentionPolicy(2), fingerprints=tmp_path / "hashes", say=messages.append
    )
    uploader.submit(make_checkpoint(tmp_path, 1))
    shutil.rmtree(tmp_path / "checkpoint-1")
    assert uploader.close(60) == []
    assert messages[-1].endswith("checkpoint-1 was deleted before it was uploaded")


@pytest.mark.slow
def test_only_this_runs_old_checkpoints_are_deleted(store_url: str, tmp_path: Path) -> None:
    other, store = open_store(store_url, "other"), open_store(store_url)
    other.push(make_checkpoint(tmp_path / "other", 1))
    store.objects.write("notes/000001/mine.txt", "not a step")
    best = RetentionPolicy(1, best="score")
    uploader = Uploader(store, policy=best, fingerprints=tmp_path / "hashes", say=pytest.fail)
    for step, score in enumerate([1, 5, 2, 3], 1):
        uploader.submit(make_checkpoint(tmp_path / "run", step, score=score))
        until(lambda: not uploader.held())
    assert uploader.close(60) == []
    again = open_store(store_url)  # which has to read the scores
    assert again.steps() == [2, 4]
    assert again.prune(best, newest=4) == []
    assert "notes/000001/mine.txt" in again.objects.list()
    assert other.steps() == [1]


def test_a_job_that_lost_its_lease_uploads_nothing(proxy: FaultProxy, tmp_path: Path) -> None:
    store = open_store()

    def lost() -> None:
        raise LeaseLost("another job has it")

    uploader = Uploader(
        store,
        policy=RetentionPolicy(),
        fingerprints=tmp_path / "hashes",
        say=pytest.fail,
        guard=lost,
    )
    uploader.submit(make_checkpoint(tmp_path, 1))
    assert uploader.close(60) == [1]
    assert store.objects.list() == {}
