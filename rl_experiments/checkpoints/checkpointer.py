"""A run's checkpoints while it is written: one writer, copies in its store, old ones dropped."""

from __future__ import annotations

import fcntl
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rl_experiments import distributed
from rl_experiments.checkpoints import local as checkpoint
from rl_experiments.checkpoints.lease import Lease
from rl_experiments.checkpoints.local import Metrics, RetentionPolicy, is_whole, step_of
from rl_experiments.checkpoints.store import CheckpointStore, newest
from rl_experiments.checkpoints.uploader import Uploader, push_run
from rl_experiments.config.schema import CheckpointConfig, Config
from rl_experiments.errors import UserError
from rl_experiments.paths import CHECKPOINTS_FOLDER, HASHES_FILE, RUNS, WRITER_LOCK_FILE

Say = Callable[[str], None]

_INHERITED = 65.0  # seconds: by then the lease of an attempt that died is over
_CUT_SHORT = 10.0  # seconds for uploads where a run ends before its time


class Checkpointer:
    """The checkpoints of one job's folder."""

    def __init__(self, job: Path, settings: CheckpointConfig, say: Say) -> None:
        self.folder = job / CHECKPOINTS_FOLDER
        self.job = job
        self.settings = settings
        self.keep = keep_rules(settings)
        self._say = say
        self._store: CheckpointStore | None = None
        self._lease: Lease | None = None
        self._uploader: Uploader | None = None

    def connect(self, *, resume: bool) -> None:
        """To the store. Raises a `UserError` for what would fail later, or harm another run."""
        self._store = store = open_store(self.job, self.settings)
        self._lease = Lease(store.objects, say=self._say)
        self._lease.acquire(wait=_INHERITED if resume else 0.0)
        with store.objects.told():
            steps = store.steps()
        if steps and not resume:
            raise UserError(
                f"{store.objects.label}: {store.objects.root} holds step {steps[-1]} of a run of "
                "this name; add resume=true to go on with it, or take another name=..."
            )
        self._uploader = Uploader(
            store,
            keep=self.keep,
            hashes=self.job / HASHES_FILE,
            say=self._say,
            guard=self._lease.confirm,
        )

    def newest(self) -> Path | None:
        """The checkpoint to go on from, fetched from the store if need be; None to start."""
        found = newest(
            self._store,
            self.folder,
            hashes=self.job / HASHES_FILE,
            say=self._say,
            trusted=self.settings.trust_store,
        )
        if found and found.left_out:
            raise UserError(
                f"checkpoint.store={self.settings.store}: step {found.step} was not written from "
                f"this run folder, and loading its {found.left_out[0]} may run code that it holds; "
                "add checkpoint.trust_store=true if nobody else can write there"
            )
        if found and self._store and self._uploader:  # what an earlier attempt could not send
            with self._store.objects.told():
                there = self._store.steps()
            for path in self.folder.glob("checkpoint-*[0-9]"):
                if step_of(path) <= found.step and step_of(path) not in there and is_whole(path):
                    self._uploader.submit(path)
        return found.folder if found else None

    def seal(self, step: int, metrics: Metrics) -> None:
        """Make `checkpoint-{step}` count, send it on its way, and drop what the rules drop."""
        sealed = checkpoint.seal(self.folder, step=step, metrics=metrics)
        held: set[int] = set()
        if self._uploader:
            self._uploader.submit(sealed)
            held = self._uploader.held()
        checkpoint.prune(self.folder, self.keep, newest=step, held=held)

    def close(self, limit: float) -> None:
        """Wait for the uploads, `limit` seconds at most, and say what is missing."""
        missing = self._uploader.close(limit) if self._uploader else []
        if missing:
            steps = f"step{'s' * (len(missing) > 1)} {', '.join(map(str, missing))}"
            self._say(
                f"checkpoint.store={self.settings.store}: {steps} could not be uploaded and "
                f"{'are' if len(missing) > 1 else 'is'} kept in {self.folder}. Push with: "
                f"{push_command(self.job)}"
            )
        if self._lease:
            self._lease.release()


@contextmanager
def saving(job: Path, config: Config, say: Say) -> Iterator[Checkpointer]:
    """The checkpoints of the job that runs here; a second writer is refused."""
    found = Checkpointer(job, config.checkpoint, say)
    if not distributed.is_first():
        yield found
        return
    with alone(job):
        limit = _CUT_SHORT
        try:
            if config.checkpoint.store:
                found.connect(resume=config.resume)
            yield found
            limit = config.checkpoint.close_timeout
        finally:
            found.close(limit)


@contextmanager
def alone(job: Path) -> Iterator[None]:
    """Refuse a second process that writes the folder; the system ends the lock with the process."""
    with (job / WRITER_LOCK_FILE).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{job}: another process writes this run; end it, wait for it, or take another "
                "name=..."
            ) from None
        except OSError:
            pass  # a file system without locks
        yield


def keep_rules(settings: CheckpointConfig) -> RetentionPolicy:
    return RetentionPolicy(settings.keep_latest, settings.keep_every, settings.keep_best)


def open_store(job: Path, settings: CheckpointConfig) -> CheckpointStore:
    """Where the job's checkpoints have copies."""
    return CheckpointStore.open(
        settings.store or "",
        project=settings.project,
        name=f"{job.parent.name}-{job.name}",
        setting="checkpoint.store",
    )


def push(job: Path, settings: CheckpointConfig, say: Say) -> list[int]:
    """Copy the checkpoints of a job's folder that its store lacks; the steps that it has then."""
    with alone(job):
        store = open_store(job, settings)
        lease = Lease(store.objects, say=say)
        lease.acquire()
        try:
            return push_run(store, job / CHECKPOINTS_FOLDER, say=say, guard=lease.confirm)
        finally:
            lease.release()


def push_command(job: Path) -> str:
    run = job.parent
    with suppress(ValueError):
        run = run.relative_to(RUNS.absolute())
    return f"python -m rl_experiments push {shlex.quote(str(run))}"
