"""One writer a run: a lease in its store, which a dead job's successor gets when it expires."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from rl_experiments.errors import UserError
from rl_experiments.storage.objects import ObjectStore, code

LEASE = "lease.json"
_LAST_WORD = 3.0  # seconds to give it back in at the end, when it would expire anyway


class LeaseLost(UserError):
    """Another job writes this run now."""


@dataclass(frozen=True)
class _Told:
    """What the lease's file says."""

    nonce: str
    owner: str
    where: str
    machine: str
    pid: int
    seconds: float  # that it lasts


@dataclass(frozen=True)
class _Held:
    """A lease as it was read, all times by the store's own clock."""

    told: _Told
    age: float  # seconds since it was renewed
    until: datetime
    etag: str | None

    def is_over(self) -> bool:
        if self.age > self.told.seconds + 1:  # HTTP's times are whole seconds
            return True
        return self.told.machine == _machine() and not _is_alive(self.told.pid)


class Lease:
    """The right to write a run, held by one job until it no longer renews it.

    Only the store's clock counts: how old the lease is, it says in one answer. Where it honours
    conditions (`If-Match`) two jobs cannot both get it; where it does not, each looks again after
    `settle` seconds, and at each renewal.
    """

    def __init__(
        self,
        objects: ObjectStore,
        *,
        say: Callable[[str], None],
        owner: str | None = None,
        seconds: float = 60.0,
        settle: float = 2.0,
    ) -> None:
        """`owner` is the same for all attempts of one job: the next takes over from the last."""
        # Its own: uploads that are given up must not end its calls, nor outlast it.
        self.objects = ObjectStore(objects.fs, objects.root, label=objects.label)
        self.objects.patience = seconds / 3
        self.seconds = seconds
        self.settle = settle
        self._say = say
        self._nonce = uuid.uuid4().hex
        self._owner = owner or self._nonce
        self._etag: str | None = None
        self._honours = False  # the store, conditions
        self._lost: str | None = None
        self._renewed = 0.0
        self._lock = threading.Lock()
        self._ended = threading.Event()

    def acquire(self, *, wait: float = 0.0) -> None:
        """Raises a `UserError` that names the holder, after `wait` seconds for it to expire."""
        deadline = time.monotonic() + wait
        with self.objects.told():
            while True:
                held = self._read()
                if held is None or held.told.owner == self._owner or held.is_over():
                    if self._take(held):
                        break
                elif time.monotonic() >= deadline:
                    raise UserError(
                        f"{self.objects.label}: {_refusal(held)}; end that job, wait for it, or "
                        "take another name=..."
                    )
                time.sleep(min(1.0, self.seconds / 10))
        threading.Thread(target=self._renew_always, name="lease", daemon=True).start()

    def confirm(self) -> None:
        """Raises `LeaseLost` once another job has it; the store's error where that is unclear."""
        if self._lost is None and time.monotonic() - self._renewed > self.seconds * 2 / 3:
            self._renew()
        if self._lost is not None:
            raise LeaseLost(self._lost)

    def release(self) -> None:
        self._ended.set()
        self.objects.patience = _LAST_WORD
        with self._lock, suppress(Exception):  # then it expires
            held = self._read()
            if held and held.told.nonce == self._nonce:
                self.objects.remove(LEASE)

    def _take(self, held: _Held | None) -> bool:
        condition: dict[str, Any] = {"IfMatch": held.etag} if held else {"IfNoneMatch": "*"}
        begun = time.monotonic()
        # A store that honours conditions refuses the same a second time, if not the first.
        taken_twice = self._write(condition) and self._write(condition)
        self._honours = self.objects.is_remote and not taken_twice
        if not self._honours:
            time.sleep(self.settle)
        now = self._read()
        if now is None or now.told.nonce != self._nonce:
            return False
        self._etag, self._renewed = now.etag, begun
        return True

    def _renew_always(self) -> None:
        while not self._ended.wait(self.seconds / 3) and self._lost is None:
            with suppress(Exception):  # `confirm` finds out when it matters
                self._renew()

    def _renew(self) -> None:
        with self._lock:
            if self._ended.is_set() or self._lost is not None:
                return
            begun = time.monotonic()
            if not (self._honours and self._write({"IfMatch": self._etag})):
                held = self._read()
                if held is not None and held.told.nonce != self._nonce:
                    self._lost = f"{self.objects.label}: {_refusal(held)}; nothing more is uploaded"
                    self._say(self._lost)
                    return
                self._etag = held.etag if held else None
                if not self._write({"IfMatch": held.etag} if held else {"IfNoneMatch": "*"}):
                    return  # someone is quicker: the next time tells
            self._renewed = begun

    def _read(self) -> _Held | None:
        try:
            read = self._read_remote if self.objects.is_remote else self._read_local
            text, age, renewed, etag = read()
        except FileNotFoundError:
            return None
        try:
            told = _Told(**json.loads(text))
            until = renewed + timedelta(seconds=told.seconds)
        except (ValueError, TypeError, OverflowError):
            told = _Told("", "", "an unknown job", "", 0, self.seconds)
            until = renewed + timedelta(seconds=self.seconds)
        return _Held(told, age, until, etag)

    def _read_remote(self) -> tuple[bytes, float, datetime, str | None]:
        async def get() -> tuple[bytes, Any]:
            bucket, _, key = self.objects.path(LEASE).partition("/")
            answer = await self.objects.fs._call_s3("get_object", Bucket=bucket, Key=key)
            async with answer["Body"] as body:
                return await body.read(), answer

        text, answer = self.objects.call(get)
        date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
        now = parsedate_to_datetime(date) if date else datetime.now(UTC)
        renewed = answer["LastModified"]
        return text, (now - renewed).total_seconds(), renewed, answer["ETag"]

    def _read_local(self) -> tuple[bytes, float, datetime, str | None]:
        path = Path(self.objects.path(LEASE))
        text, renewed = path.read_bytes(), path.stat().st_mtime
        probe = path.with_name(f".clock-{self._nonce}")
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink()
        return text, now - renewed, datetime.fromtimestamp(renewed, UTC), None

    def _write(self, condition: dict[str, Any]) -> bool:
        """Whether the store took it under the condition, which it may not heed."""
        machine, host = _machine(), socket.gethostname()
        told = _Told(self._nonce, self._owner, host, machine, os.getpid(), self.seconds)
        text = json.dumps(asdict(told))
        if not self.objects.is_remote:
            self.objects.write(LEASE, text)
            return True
        bucket, _, key = self.objects.path(LEASE).partition("/")
        put: dict[str, Any] = {"Bucket": bucket, "Key": key, "Body": text.encode()}
        try:
            answer = self.objects.call("call_s3", "put_object", **put, **condition)
        except FileNotFoundError:
            return False  # `If-Match` on what is gone
        except OSError as error:
            if code(error) in ("PreconditionFailed", "412", "ConditionalRequestConflict"):
                return False
            if code(error) not in ("NotImplemented", "501"):
                raise
            answer = self.objects.call("call_s3", "put_object", **put)
        self._etag = answer["ETag"]
        return True


def _refusal(held: _Held) -> str:
    until = f"{held.until.astimezone():%H:%M:%S}"
    return f"{held.told.where} (process {held.told.pid}) has this run, until {until} if not renewed"


def _machine() -> str:
    """Where a process number means something: this start of this machine or container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()}/{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return uuid.uuid4().hex  # not told: no process is known to be dead


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
