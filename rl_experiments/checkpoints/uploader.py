"""Uploads beside training: the store may be slow, or away for a while, and training goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from rl_experiments.checkpoints import local as checkpoint
from rl_experiments.checkpoints.lease import LeaseLost
from rl_experiments.checkpoints.local import (
    CorruptCheckpoint,
    Manifest,
    Metrics,
    RetentionPolicy,
)
from rl_experiments.checkpoints.store import CheckpointStore, remember
from rl_experiments.errors import UserError
from rl_experiments.paths import MANIFEST_FILE
from rl_experiments.storage.objects import backoff, reason

_QUIET = 600.0  # seconds after a warning: a store that comes and goes is told of once

Say = Callable[[str], None]


class Uploader:
    """Pushes sealed checkpoints from a thread of its own, for as long as the store takes to answer.

    What waits is what the keep rules would keep of it; one checkpoint is moved at a time.
    """

    def __init__(
        self,
        store: CheckpointStore,
        *,
        keep: RetentionPolicy,
        hashes: Path,
        say: Say,
        guard: Callable[[], None] = lambda: None,
        longest_pause: float = 60.0,
    ) -> None:
        self.store = store
        self.keep = keep
        self.hashes = hashes
        self._say = say
        self._guard = guard
        self._longest_pause = longest_pause
        self._waiting: dict[int, tuple[Path, Metrics]] = {}
        self._moving: int | None = None
        self._newest = 0
        self._closing = self._given_up = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="uploads", daemon=True)
        self._thread.start()

    def submit(self, folder: Path) -> None:
        """To be called once the checkpoint is sealed, after the step that it describes."""
        remember(self.hashes, folder)
        with self._changed:
            self._waiting[checkpoint.step_of(folder)] = folder, Manifest.of(folder).metrics
            wanted = self.keep.of(self._waiting, {s: m for s, (_, m) in self._waiting.items()})
            for step in self._waiting.keys() - wanted - {self._moving}:
                del self._waiting[step]
            self._changed.notify_all()

    def held(self) -> set[int]:
        """The steps whose local checkpoints must stay: the store does not have them yet."""
        with self._changed:
            return set(self._waiting)

    def close(self, limit: float) -> list[int]:
        """Wait for what is under way, `limit` seconds at most; the steps that are missing."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(limit)
        if self._thread.is_alive():
            self.store.objects.stop()
            self._thread.join(5)
        return sorted(self.held())

    def _work(self) -> None:
        failures, warned, told = 0, float("-inf"), False
        while (step := self._next()) is not None:
            folder, _ = self._waiting[step]
            try:
                self._guard()
                self.store.push(folder, guard=self._guard)
            except LeaseLost:
                return  # it says so itself
            except Exception as error:
                if not (folder / MANIFEST_FILE).exists():
                    self._say(f"{folder} was deleted before it was uploaded")
                    self._done(step)
                    continue
                if self.store.objects.is_stopped:
                    return
                if not failures and time.monotonic() - warned > _QUIET:
                    warned, told = time.monotonic(), True
                    self._say(
                        f"{self.store.objects.label}: {reason(error)}. Training goes on; "
                        "checkpoints are kept here and uploaded later"
                    )
                failures += 1
                with self._changed:
                    self._moving = None
                    self._changed.wait(backoff(failures, first=1.0, longest=self._longest_pause))
                continue
            if told:
                self._say(f"{self.store.objects.label}: answers again; step {step} is uploaded")
            failures, told = 0, False
            self._done(step)
            self._prune(step)

    def _next(self) -> int | None:
        """The newest first: it is worth most."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            self._moving = max(self._waiting, default=None)
            return self._moving

    def _done(self, step: int) -> None:
        with self._changed:
            self._waiting.pop(step, None)
            self._moving = None

    def _prune(self, step: int) -> None:
        self._newest = max(self._newest, step)
        try:
            self._guard()
            self.store.prune(self.keep, newest=self._newest)
        except Exception as error:  # the next one prunes again
            if not isinstance(error, LeaseLost) and not self._given_up:
                self._given_up = True
                self._say(
                    f"{self.store.objects.label}: old checkpoints stay there: {reason(error)}"
                )


def push_run(
    store: CheckpointStore,
    checkpoints: Path,
    *,
    say: Say,
    guard: Callable[[], None] = lambda: None,
) -> list[int]:
    """Push the checkpoints of a run's folder that the store lacks; the steps that it has then."""
    pushed = []
    for folder in sorted(checkpoints.glob("checkpoint-*[0-9]"), key=checkpoint.step_of):
        step = checkpoint.step_of(folder)
        if not checkpoint.is_whole(folder):
            say(f"{folder} is torn or was changed: passed over")
            continue
        with store.objects.told():
            try:
                store.push(folder, guard=guard)
            except CorruptCheckpoint as torn:
                raise UserError(f"{store.objects.label}: {torn} after it was sent") from torn
        pushed.append(step)
    return pushed
