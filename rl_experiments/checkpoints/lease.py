"""One writer for each run in a store: a lease that a dead job's successor gets when it expires.

No other module knows of S3's conditional writes (`If-Match`, `If-None-Match`).
"""

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
from rl_experiments.storage.objects import ObjectStore, error_code

LEASE_FILE = "lease.json"  # in the store, beside the steps of the run
SETTLE_SECONDS = 2.0  # until what another job wrote to a store without conditions can be seen
_RELEASE_SECONDS = 3.0  # to try to give it back at the end, when it would expire anyway
_CLOCK_STEP_SECONDS = 1.0  # the times in HTTP headers are whole seconds
_REFUSED_CODES = ("PreconditionFailed", "412", "ConditionalRequestConflict")
_UNSUPPORTED_CODES = ("NotImplemented", "501")


class LeaseLost(UserError):
    """Another job writes this run now."""


@dataclass(frozen=True)
class _Holder:
    """Who holds a lease: the content of its file."""

    nonce: str  # of one acquisition
    owner: str  # the same for all attempts of a job
    where: str  # the name of the machine, for messages
    machine: str  # identifies the machine or container since its start
    pid: int
    seconds: float  # that the lease lasts without being renewed


@dataclass(frozen=True)
class _ReadLease:
    """A lease as it was read; all times are by the store's own clock."""

    holder: _Holder
    age_seconds: float  # since it was renewed
    until: datetime
    etag: str | None

    def is_over(self) -> bool:
        if self.age_seconds > self.holder.seconds + _CLOCK_STEP_SECONDS:
            return True
        return self.holder.machine == _machine() and not _is_alive(self.holder.pid)


class Lease:
    """The right to write a run, held by one job until it no longer renews it.

    Only the store's clock counts: one answer of the store tells both its time and when the lease
    was written. If the store obeys conditions, two jobs cannot both get the lease. If it does not,
    each looks again `settle_seconds` after it has taken the lease, and at each renewal.
    """

    def __init__(
        self,
        objects: ObjectStore,
        *,
        say: Callable[[str], None],
        owner: str | None = None,
        seconds: float = 60.0,
        settle_seconds: float | None = None,  # SETTLE_SECONDS by default
    ) -> None:
        """`owner` is the same for all attempts of one job: the next takes over from the last."""
        # Objects of its own: uploads that are given up must not cancel its calls, nor outlast it.
        self.objects = ObjectStore(objects.fs, objects.root, label=objects.label)
        self.objects.patience_seconds = seconds / 3
        self.seconds = seconds
        self.settle_seconds = SETTLE_SECONDS if settle_seconds is None else settle_seconds
        self._say = say
        self._nonce = uuid.uuid4().hex
        self._owner = owner or self._nonce
        self._etag: str | None = None
        self._store_obeys_conditions = False
        self._loss: str | None = None  # the message, once another job has the lease
        self._renewed_at = 0.0
        self._lock = threading.Lock()
        self._ended = threading.Event()

    def acquire(self, *, wait_seconds: float = 0.0) -> None:
        """Take the lease, and renew it from a thread until `release`.

        Raises a `UserError` that names the holder if another job still has it after
        `wait_seconds`.
        """
        deadline = time.monotonic() + wait_seconds
        with self.objects.as_user_error():
            self._store_obeys_conditions = self.objects.is_remote and self._probe_conditions()
            while True:
                lease = self._read()
                if lease is None or lease.holder.owner == self._owner or lease.is_over():
                    if self._take(lease):
                        break
                elif time.monotonic() >= deadline:
                    raise UserError(
                        f"{self.objects.label}: {_describe(lease)}; end that job, wait for it, or "
                        "take another name=..."
                    )
                time.sleep(min(1.0, self.seconds / 10))
        threading.Thread(target=self._renew_until_ended, name="lease", daemon=True).start()

    def confirm(self) -> None:
        """Raise `LeaseLost` if another job has the lease, the store's error if that is unclear."""
        if self._loss is None and time.monotonic() - self._renewed_at > self.seconds * 2 / 3:
            self.renew()
        if self._loss is not None:
            raise LeaseLost(self._loss)

    def renew(self) -> None:
        """Renew the lease now, and note it if another job has it; may raise the store's error."""
        with self._lock:
            if self._ended.is_set() or self._loss is not None:
                return
            begun = time.monotonic()
            if not (self._store_obeys_conditions and self._write({"IfMatch": self._etag})):
                lease = self._read()
                if lease is not None and lease.holder.nonce != self._nonce:
                    self._loss = (
                        f"{self.objects.label}: {_describe(lease)}; nothing more is uploaded"
                    )
                    self._say(self._loss)
                    return
                self._etag = lease.etag if lease else None
                if not self._write({"IfMatch": lease.etag} if lease else {"IfNoneMatch": "*"}):
                    return  # another job was quicker; the next renewal finds its lease
            self._renewed_at = begun

    def release(self) -> None:
        """Give the lease back; if the store does not answer, the lease expires."""
        self._ended.set()
        self.objects.patience_seconds = _RELEASE_SECONDS
        with self._lock, suppress(Exception):
            lease = self._read()
            if lease and lease.holder.nonce == self._nonce:
                self.objects.remove(LEASE_FILE)

    def _probe_conditions(self) -> bool:
        """Return whether the store refuses writes whose `If-None-Match` or `If-Match` fails."""
        probe = f".conditions-{self._nonce}"
        self.objects.write(probe, "a test whether this store obeys conditions")
        try:
            failing: tuple[dict[str, str], ...] = (
                {"IfNoneMatch": "*"},
                {"IfMatch": '"00000000000000000000000000000000"'},
            )
            return not any(self._put(probe, "ignored", each) for each in failing)
        finally:
            self.objects.remove(probe)

    def _take(self, lease: _ReadLease | None) -> bool:
        """Return whether the lease is ours now, in place of `lease` or of none."""
        begun = time.monotonic()
        self._write({"IfMatch": lease.etag} if lease else {"IfNoneMatch": "*"})
        if not self._store_obeys_conditions:
            time.sleep(self.settle_seconds)
        # A write whose answer was lost is refused when it is tried again: only a look tells.
        current = self._read()
        if current is None or current.holder.nonce != self._nonce:
            return False
        self._etag, self._renewed_at = current.etag, begun
        return True

    def _renew_until_ended(self) -> None:
        while not self._ended.wait(self.seconds / 3) and self._loss is None:
            with suppress(Exception):  # `confirm` raises it, when it matters
                self.renew()

    def _read(self) -> _ReadLease | None:
        """Return the lease in the store; None if there is none."""
        try:
            read = self._read_remote if self.objects.is_remote else self._read_local
            text, age_seconds, renewed, etag = read()
        except FileNotFoundError:
            return None
        try:
            holder = _Holder(**json.loads(text))
            until = renewed + timedelta(seconds=holder.seconds)
        except (ValueError, TypeError, OverflowError):
            holder = _Holder("", "", "an unknown job", "", 0, self.seconds)
            until = renewed + timedelta(seconds=self.seconds)
        return _ReadLease(holder, age_seconds, until, etag)

    def _read_remote(self) -> tuple[bytes, float, datetime, str | None]:
        """Return the lease's text, its age in seconds, when it was written, and its ETag."""

        async def get() -> tuple[bytes, Any]:
            bucket, _, key = self.objects.path(LEASE_FILE).partition("/")
            answer = await self.objects.fs._call_s3("get_object", Bucket=bucket, Key=key)
            async with answer["Body"] as body:
                return await body.read(), answer

        text, answer = self.objects.call(get)
        date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
        now = parsedate_to_datetime(date) if date else datetime.now(UTC)
        renewed = answer["LastModified"]
        return text, (now - renewed).total_seconds(), renewed, answer["ETag"]

    def _read_local(self) -> tuple[bytes, float, datetime, str | None]:
        """Return the same for a store in a folder, by the clock of its file system."""
        path = Path(self.objects.path(LEASE_FILE))
        text, renewed = path.read_bytes(), path.stat().st_mtime
        clock = path.with_name(f".clock-{self._nonce}")
        clock.touch()
        now = clock.stat().st_mtime
        clock.unlink()
        return text, now - renewed, datetime.fromtimestamp(renewed, UTC), None

    def _write(self, condition: dict[str, Any]) -> bool:
        """Write our name into the lease; return False if the store says the condition fails."""
        holder = _Holder(
            nonce=self._nonce,
            owner=self._owner,
            where=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            seconds=self.seconds,
        )
        text = json.dumps(asdict(holder))
        if self.objects.is_remote:
            return self._put(LEASE_FILE, text, condition)
        self.objects.write(LEASE_FILE, text)
        return True

    def _put(self, name: str, text: str, condition: dict[str, Any]) -> bool:
        """Write an object under a condition; return False if the store says that it fails.

        A store that does not know conditions writes it anyway.
        """
        bucket, _, key = self.objects.path(name).partition("/")
        put: dict[str, Any] = {"Bucket": bucket, "Key": key, "Body": text.encode()}
        try:
            answer = self.objects.call("call_s3", "put_object", **put, **condition)
        except FileNotFoundError:
            return False  # `If-Match` on an object that was deleted
        except OSError as error:
            if error_code(error) in _REFUSED_CODES:
                return False
            if error_code(error) not in _UNSUPPORTED_CODES:
                raise
            answer = self.objects.call("call_s3", "put_object", **put)
        if name == LEASE_FILE:
            self._etag = answer["ETag"]
        return True


def _describe(lease: _ReadLease) -> str:
    until, holder = f"{lease.until.astimezone():%H:%M:%S}", lease.holder
    return f"{holder.where} (process {holder.pid}) has this run, until {until} if not renewed"


def _machine() -> str:
    """Identify the place in which a process number means one process: this start of this machine.

    It is a random text if the system does not tell, so that no process is taken for dead.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()}/{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return uuid.uuid4().hex


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
