"""The exclusive claim of a run's folder: one command at a time writes to it.

A command that is refused, or withdrawn before anything was queued, leaves the folder as it was.
"""

from __future__ import annotations

import atexit
import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import IO

from hydra_modal_jobs.errors import LaunchRefused
from hydra_modal_jobs.files import atomic_path
from hydra_modal_jobs.paths import CLAIM_FILE, MULTIRUN_FILE

_claims: dict[Path, Claim] = {}


def claim_run(folder: Path) -> Claim:
    """Claim the folder of a run for this process, making it if need be; again, the same claim.

    Raises `LaunchRefused` if another process has claimed it. The system ends a claim with the
    process, however that ends.
    """
    folder = folder.absolute()
    if folder not in _claims:
        _claims[folder] = Claim(folder)
    return _claims[folder]


def undo_all() -> None:
    """Undo what is not kept of all claims of this process, such as at its end."""
    for claim in list(_claims.values()):
        claim.undo()


class Claim:
    """The claim of a folder, with what is needed to undo what was written under it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._before: dict[Path, bytes | None] = {}  # the files' contents; None: there was none
        self._made: list[Path] = []  # folders, outer ones first
        self._is_kept = False
        try:
            self._lock = self._acquire()
        except OSError as error:
            self._remove_made_folders()
            reason = error.strerror or error
            remedy = "choose another folder with hydra.sweep.dir=..."
            raise LaunchRefused(f"{_shown(folder)}: {reason}; {remedy}") from None
        self.was_used = any(path.name != CLAIM_FILE for path in folder.iterdir())
        # Hydra's sweepers write it before they call the launcher.
        self.will_write(folder / MULTIRUN_FILE)

    def will_write(self, path: Path) -> None:
        """Remember a file as it is now, and which of its folders are there, for `undo`."""
        if path not in self._before:
            self._before[path] = path.read_bytes() if path.is_file() else None
            self._note_missing_folders(path.parent)

    def keep(self) -> None:
        """Let what was written so far stay."""
        self._is_kept = True
        self._before.clear()
        self._made.clear()

    def undo(self) -> None:
        """Restore the files as they were, and remove the folders that were made and are empty.

        The claim ends unless something was kept under it.
        """
        for path, content in self._before.items():
            if content is None:
                path.unlink(missing_ok=True)
            elif not path.is_file() or path.read_bytes() != content:
                with atomic_path(path) as building:
                    building.write_bytes(content)
        self._before.clear()
        if not self._is_kept:
            if self._is_new_lock or not self.was_used:
                (self.folder / CLAIM_FILE).unlink(missing_ok=True)
            self._lock.close()
            _claims.pop(self.folder, None)
        self._remove_made_folders()

    def _acquire(self) -> IO[str]:
        path = self.folder / CLAIM_FILE
        while True:
            self._note_missing_folders(self.folder)
            self.folder.mkdir(parents=True, exist_ok=True)
            self._is_new_lock = not path.exists()
            try:
                lock = path.open("a")
            except FileNotFoundError:
                continue  # another command has just removed the folder that it had made
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                raise LaunchRefused(
                    f"{_shown(self.folder)}: another command is at work on this run; wait until it "
                    "has ended, or take another name"
                ) from None
            except OSError:
                return lock  # a file system without locks
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                    return lock
            lock.close()  # another command has just removed it

    def _note_missing_folders(self, folder: Path) -> None:
        missing = [each for each in (folder, *folder.parents) if not each.exists()]
        self._made += [each for each in reversed(missing) if each not in self._made]

    def _remove_made_folders(self) -> None:
        for folder in reversed(self._made):
            with suppress(OSError):
                folder.rmdir()  # only if it is empty
        self._made.clear()


def _shown(folder: Path) -> Path:
    with suppress(ValueError):
        return folder.relative_to(Path.cwd())
    return folder


atexit.register(undo_all)
