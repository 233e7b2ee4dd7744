"""One writer for each run in a store."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from rl_experiments.checkpoints.lease import Lease
from rl_experiments.errors import UserError
from tests.support.faults import FaultProxy
from tests.support.stores import moto, open_store, proxy, rclone, store_url, surroundings

__all__ = ["moto", "proxy", "rclone", "store_url", "surroundings"]  # fixtures

HOLDER = """
import sys
from rl_experiments.checkpoints.lease import Lease, LeaseLost
from rl_experiments.checkpoints.store import CheckpointStore
store = CheckpointStore.open(sys.argv[1], project="project", name="run", setting="checkpoint.store")
lease = Lease(store.objects, say=print, seconds=float(sys.argv[2]), settle_seconds=0.2)
lease.acquire()
print("held", flush=True)
sys.stdin.readline()
try:
    lease.confirm()
    print("kept")
except LeaseLost as loss:
    print(f"lost: {loss}")
lease.release()  # which must not end the lease of another job
"""


def start_holder(url: str, *, seconds: float) -> subprocess.Popen[str]:
    """Start a process that holds the lease until it reads a line."""
    words = [sys.executable, "-c", HOLDER, url, str(seconds)]
    holder = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout and holder.stdout.readline() == "held\n"
    return holder


@pytest.mark.slow
def test_there_is_one_writer(store_url: str) -> None:
    store, messages = open_store(store_url), list[str]()
    lease = Lease(store.objects, say=messages.append, seconds=2.0, settle_seconds=0.2)
    lease.acquire()
    second = Lease(store.objects, say=messages.append, seconds=2.0, settle_seconds=0.2)
    holder = rf"{socket.gethostname()} \(process {os.getpid()}\) has this run, until \d\d:\d\d:\d\d"
    with pytest.raises(UserError, match=holder):
        second.acquire()
    time.sleep(3.5)  # without a renewal, the lease would be over
    with pytest.raises(UserError, match=holder):
        second.acquire()
    lease.confirm()
    lease.release()
    second.acquire()
    second.confirm()
    second.release()
    assert messages == []
    assert store.objects.list() == {}


@pytest.mark.slow
def test_a_suspended_holder_loses_its_lease(store_url: str) -> None:
    # Like a machine that sleeps, or whose network is gone.
    store, messages = open_store(store_url), list[str]()
    holder = start_holder(store_url, seconds=1.2)
    os.kill(holder.pid, signal.SIGSTOP)
    second = Lease(store.objects, say=messages.append, settle_seconds=0.2)
    second.acquire(wait_seconds=60)
    second.confirm()
    os.kill(holder.pid, signal.SIGCONT)
    output, _ = holder.communicate("\n", timeout=120)
    assert "lost: checkpoint.store=" in output and "nothing more is uploaded" in output
    assert "kept" not in output
    third = Lease(store.objects, say=messages.append)
    with pytest.raises(UserError):
        third.acquire()
    second.release()
    assert messages == []


@pytest.mark.slow
def test_attempts_of_one_job_and_dead_processes_need_not_wait(proxy: FaultProxy) -> None:
    store = open_store()
    Lease(store.objects, say=pytest.fail, owner="job-7").acquire()
    attempt = Lease(store.objects, say=pytest.fail, owner="job-7")
    attempt.acquire()
    attempt.release()
    holder = start_holder("s3://bucket/prefix", seconds=60)
    holder.kill()
    holder.communicate()
    assert "lease.json" in store.objects.list()
    heir = Lease(store.objects, say=pytest.fail)
    heir.acquire()
    heir.release()


@pytest.mark.slow
def test_a_lease_outlasts_faults(proxy: FaultProxy) -> None:
    store = open_store()
    proxy.kinds = ("lost", "503")  # "lost": what was done looks like a failure
    for _ in range(3):
        proxy.rate = 0.3
        lease = Lease(store.objects, say=pytest.fail, settle_seconds=0.1)
        lease.acquire()
        lease.renew()
        lease.confirm()
        proxy.rate = 0.0
        lease.release()
    assert store.objects.list() == {}
