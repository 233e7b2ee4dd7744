"""A run's checkpoints while it trains: one writer, uploads to its store, old ones deleted."""

from __future__ import annotations

import fcntl
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rl_experiments import distributed
from rl_experiments.checkpoints.lease import Lease
from rl_experiments.checkpoints.local import list_checkpoints, step_of
from rl_experiments.checkpoints.manifest import Metrics, finalize, verify
from rl_experiments.checkpoints.retention import RetentionPolicy, prune
from rl_experiments.checkpoints.store import CheckpointStore, find_resume_point
from rl_experiments.checkpoints.uploader import Uploader, push_all
from rl_experiments.config.schema import CheckpointConfig, Config
from rl_experiments.errors import UserError
from rl_experiments.paths import CHECKPOINTS_FOLDER, HASHES_FILE, RUNS, WRITER_LOCK_FILE

Say = Callable[[str], None]

_INHERIT_SECONDS = 65.0  # by then, the lease of an attempt that died has expired
_INTERRUPTED_SECONDS = 10.0  # for uploads, if a run ends before its time


class Checkpointer:
    """The checkpoints of one run folder: where to go on from, and what to do with a new one."""

    def __init__(self, run_folder: Path, settings: CheckpointConfig, say: Say) -> None:
        self.run_folder = run_folder
        self.folder = run_folder / CHECKPOINTS_FOLDER
        self.settings = settings
        self.policy = RetentionPolicy(settings.keep_latest, settings.keep_every, settings.keep_best)
        self._say = say
        self._store: CheckpointStore | None = None
        self._lease: Lease | None = None
        self._uploader: Uploader | None = None

    def connect(self, *, resume: bool) -> None:
        """Open the store, and hold it as its one writer until `close`.

        Raises a `UserError` for what would fail later, or if the store holds another run.
        """
        self._store = store = open_store(self.run_folder, self.settings)
        self._lease = Lease(store.objects, say=self._say)
        self._lease.acquire(wait_seconds=_INHERIT_SECONDS if resume else 0.0)
        with store.objects.as_user_error():
            steps = store.steps()
        if steps and not resume:
            raise UserError(
                f"{store.objects.label}: {store.objects.root} holds step {steps[-1]} of a run of "
                "this name; add resume=true to go on with it, or take another name=..."
            )
        self._uploader = Uploader(
            store,
            policy=self.policy,
            fingerprints=self.run_folder / HASHES_FILE,
            say=self._say,
            guard=self._lease.confirm,
        )

    def resume_point(self) -> Path | None:
        """Return the checkpoint to go on from, verified; None if training starts afresh.

        It is downloaded if only the store has it. Checkpoints that an earlier attempt could not
        upload are uploaded from now on. Raises a `UserError` if a file that torch would unpickle
        comes from a store that is not trusted.
        """
        resumed = find_resume_point(
            self._store,
            self.folder,
            fingerprints=self.run_folder / HASHES_FILE,
            say=self._say,
            trusted=self.settings.trust_store,
        )
        if resumed is None:
            return None
        if resumed.left_out:
            raise UserError(
                f"checkpoint.store={self.settings.store}: step {resumed.step} was not written from "
                f"this run folder, and loading its {resumed.left_out[0]} may run code that it "
                "holds; add checkpoint.trust_store=true if nobody else can write there"
            )
        if self._store and self._uploader:
            with self._store.objects.as_user_error():
                stored = self._store.steps()
            for checkpoint in list_checkpoints(self.folder):
                step = step_of(checkpoint)
                if step in stored or step > resumed.step:
                    continue
                if checkpoint == resumed.folder or verify(checkpoint):
                    self._uploader.submit(checkpoint)
        return resumed.folder

    def finalize(self, step: int, metrics: Metrics) -> None:
        """Mark `checkpoint-{step}` as complete, upload it, and delete what the policy drops."""
        checkpoint = finalize(self.folder, step=step, metrics=metrics)
        held: set[int] = set()
        if self._uploader:
            self._uploader.submit(checkpoint)
            held = self._uploader.held()
        prune(self.folder, self.policy, newest=step, held=held)

    def close(self, limit_seconds: float) -> None:
        """Wait for the uploads, `limit_seconds` at most, and report what is missing then."""
        missing = self._uploader.close(limit_seconds) if self._uploader else []
        if missing:
            steps = f"step{'s' * (len(missing) > 1)} {', '.join(map(str, missing))}"
            self._say(
                f"checkpoint.store={self.settings.store}: {steps} could not be uploaded and "
                f"{'are' if len(missing) > 1 else 'is'} kept in {self.folder}. Push with: "
                f"{push_command(self.run_folder)}"
            )
        if self._lease:
            self._lease.release()


@contextmanager
def open_checkpointer(run_folder: Path, config: Config, say: Say) -> Iterator[Checkpointer]:
    """Yield the checkpoints of a run folder, which this process has locked."""
    checkpointer = Checkpointer(run_folder, config.checkpoint, say)
    if not distributed.is_first():
        yield checkpointer
        return
    limit_seconds = _INTERRUPTED_SECONDS
    try:
        if config.checkpoint.store:
            checkpointer.connect(resume=config.resume)
        yield checkpointer
        limit_seconds = config.checkpoint.close_timeout
    finally:
        checkpointer.close(limit_seconds)


@contextmanager
def exclusive_lock(run_folder: Path) -> Iterator[None]:
    """Hold the run folder for this process; raise a `UserError` if another process holds it.

    The system releases the lock when the process ends, however it ends.
    """
    with (run_folder / WRITER_LOCK_FILE).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{run_folder}: another process writes this run; end it, wait for it, or take "
                "another name=..."
            ) from None
        except OSError:
            pass  # a file system without locks
        yield


def open_store(run_folder: Path, settings: CheckpointConfig) -> CheckpointStore:
    """Return the store with the copies of a run's checkpoints."""
    return CheckpointStore.open(
        settings.store or "",
        project=settings.project,
        name=f"{run_folder.parent.name}-{run_folder.name}",
        setting="checkpoint.store",
    )


def push(run_folder: Path, settings: CheckpointConfig, say: Say) -> list[int]:
    """Upload the checkpoints of a run folder that its store lacks; return the steps it then has."""
    with exclusive_lock(run_folder):
        store = open_store(run_folder, settings)
        lease = Lease(store.objects, say=say)
        lease.acquire()
        try:
            checkpoints = run_folder / CHECKPOINTS_FOLDER
            return push_all(store, checkpoints, say=say, guard=lease.confirm)
        finally:
            lease.release()


def push_command(run_folder: Path) -> str:
    """Return the command that uploads the checkpoints of a run folder."""
    run = run_folder.parent
    with suppress(ValueError):
        run = run.relative_to(RUNS.absolute())
    return f"python -m rl_experiments push {shlex.quote(str(run))}"
