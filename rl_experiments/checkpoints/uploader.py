"""Uploads beside training: the store may be slow, or away for a while, and training goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from contextlib import suppress
from pathlib import Path

from rl_experiments.checkpoints.lease import LeaseLost
from rl_experiments.checkpoints.local import list_checkpoints, step_of
from rl_experiments.checkpoints.manifest import CorruptCheckpoint, Manifest, Metrics, verify
from rl_experiments.checkpoints.retention import RetentionPolicy
from rl_experiments.checkpoints.store import CheckpointStore, remember_fingerprint
from rl_experiments.errors import UserError
from rl_experiments.paths import MANIFEST_FILE
from rl_experiments.retry import RetryPolicy
from rl_experiments.storage.objects import reason_of

_SECONDS_BETWEEN_WARNINGS = 600.0  # of a store that comes and goes
_STOP_SECONDS = 5.0  # for the thread to end once its calls are cancelled

Say = Callable[[str], None]


class Uploader:
    """A thread that uploads finished checkpoints, trying again for as long as the store is away.

    Of the checkpoints that wait, those that the retention policy would drop are not sent. The
    newest is sent first, since it is worth most; one is sent at a time.
    """

    def __init__(
        self,
        store: CheckpointStore,
        *,
        policy: RetentionPolicy,
        fingerprints: Path,
        say: Say,
        guard: Callable[[], None] = lambda: None,
        longest_pause_seconds: float = 60.0,
    ) -> None:
        """`guard` is called before each change of the store, and raises to forbid it."""
        self.store = store
        self.policy = policy
        self.fingerprints = fingerprints
        self._say = say
        self._guard = guard
        self._retries = RetryPolicy(
            first_pause_seconds=1.0,
            longest_pause_seconds=longest_pause_seconds,
            is_temporary=self._may_succeed_later,
        )
        self._waiting: dict[int, tuple[Path, Metrics]] = {}
        self._sending: int | None = None
        self._newest_uploaded = 0
        self._is_closing = False
        self._is_away = False  # the store, when it was last asked
        self._outage_was_announced = False  # so that its end is announced too
        self._last_warning_at = float("-inf")
        self._pruning_failed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="uploads", daemon=True)
        self._thread.start()

    def submit(self, checkpoint: Path) -> None:
        """Upload a finished checkpoint in the background; those it supersedes are left out."""
        remember_fingerprint(self.fingerprints, checkpoint)
        with self._changed:
            self._waiting[step_of(checkpoint)] = checkpoint, Manifest.read(checkpoint).metrics
            metrics = {step: metrics for step, (_, metrics) in self._waiting.items()}
            wanted = self.policy.kept(self._waiting, metrics)
            for step in self._waiting.keys() - wanted - {self._sending}:
                del self._waiting[step]
            self._changed.notify_all()

    def held(self) -> set[int]:
        """Return the steps that the store does not have yet; their local checkpoints must stay."""
        with self._changed:
            return set(self._waiting)

    def close(self, limit_seconds: float) -> list[int]:
        """Wait for the uploads, `limit_seconds` at most; return the steps that are missing."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join(limit_seconds)
        if self._thread.is_alive():
            self.store.objects.stop()
            self._thread.join(_STOP_SECONDS)
        return sorted(self.held())

    def _work(self) -> None:
        with suppress(LeaseLost, CancelledError):  # the lease says so itself; `close` gave up
            while self._wait_for_work():
                step = self._retries.call(self._upload_newest, sleep=self._pause)
                if step is not None:
                    self._prune(step)

    def _wait_for_work(self) -> bool:
        """Return True once a checkpoint waits, False once none will come."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closing)
            return bool(self._waiting)

    def _upload_newest(self) -> int | None:
        """Upload the newest checkpoint that waits; return its step, or None if it is gone."""
        with self._changed:
            step = self._sending = max(self._waiting)
            checkpoint, _ = self._waiting[step]
        try:
            self._guard()
            self.store.push(checkpoint, guard=self._guard)
        except Exception as error:
            if (checkpoint / MANIFEST_FILE).exists() or isinstance(error, LeaseLost):
                with self._changed:
                    self._sending = None
                self._announce_outage(error)
                raise
            self._say(f"{checkpoint} was deleted before it was uploaded")
            self._done(step)
            return None
        if self._outage_was_announced:
            self._say(f"{self.store.objects.label}: answers again; step {step} is uploaded")
        self._is_away = self._outage_was_announced = False
        self._done(step)
        return step

    def _announce_outage(self, error: Exception) -> None:
        if self._is_away or not self._may_succeed_later(error):
            return
        self._is_away, now = True, time.monotonic()
        if now - self._last_warning_at > _SECONDS_BETWEEN_WARNINGS:
            self._last_warning_at, self._outage_was_announced = now, True
            self._say(
                f"{self.store.objects.label}: {reason_of(error)}. Training goes on; checkpoints "
                "are kept here and uploaded later"
            )

    def _may_succeed_later(self, error: Exception) -> bool:
        if isinstance(error, LeaseLost | CancelledError):
            return False
        return not self.store.objects.is_stopped

    def _pause(self, seconds: float) -> None:
        """Wait before the next attempt, which a new checkpoint or `close` brings forward."""
        with self._changed:
            self._changed.wait(seconds)

    def _done(self, step: int) -> None:
        with self._changed:
            self._waiting.pop(step, None)
            self._sending = None

    def _prune(self, step: int) -> None:
        self._newest_uploaded = max(self._newest_uploaded, step)
        try:
            self._guard()
            self.store.prune(self.policy, newest=self._newest_uploaded)
        except Exception as error:  # the next upload prunes again
            if not isinstance(error, LeaseLost) and not self._pruning_failed:
                self._pruning_failed = True
                self._say(
                    f"{self.store.objects.label}: old checkpoints are not deleted there: "
                    f"{reason_of(error)}"
                )


def push_all(
    store: CheckpointStore,
    checkpoints: Path,
    *,
    say: Say,
    guard: Callable[[], None] = lambda: None,
) -> list[int]:
    """Upload the checkpoints of a folder that the store lacks; return the steps it then has."""
    pushed = []
    for checkpoint in reversed(list_checkpoints(checkpoints)):
        if not verify(checkpoint):
            say(f"{checkpoint} is unfinished or damaged; it is passed over")
            continue
        with store.objects.as_user_error():
            try:
                store.push(checkpoint, guard=guard)
            except CorruptCheckpoint as damage:
                raise UserError(f"{store.objects.label}: {damage} after it was sent") from damage
        pushed.append(step_of(checkpoint))
    return pushed
