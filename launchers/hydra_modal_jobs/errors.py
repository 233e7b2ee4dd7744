"""Errors that end in one line, and the classes of failures with what to change about them."""

from __future__ import annotations

import re
import signal
import traceback
from dataclasses import asdict, dataclass
from typing import Any

from hydra.errors import CompactHydraException, HydraException

# The kinds of failures, with what the user can change about each.
HINTS = {
    "out_of_memory": "take a GPU with more memory (hydra.launcher.gpu) or a smaller batch",
    "out_of_host_memory": "raise hydra.launcher.memory",
    "timeout": "raise hydra.launcher.timeout or hydra.launcher.retries",
    "preempted": "raise hydra.launcher.retries",
    "import_error": "add the package to hydra.launcher.image.pip, or a local one to "
    "hydra.launcher.image.source",
    "missing_secret": "add it to .env, or name a Modal secret that has it in "
    "hydra.launcher.secrets.modal",
    "image_build": "mend hydra.launcher.image",
    "refused": "",
    "crash": "",
    "transient": "",
    "cancelled": "",
    "user_code": "",
}
# Kinds that another attempt can mend. A preempted job also runs again; that is not counted.
RETRIED = frozenset({"timeout", "crash", "transient"})

_PATTERNS = (
    ("out_of_memory", r"OutOfMemoryError|CUDA out of memory|CUDA error: out of memory"),
    ("out_of_memory", r"No available memory for the cache blocks|Free memory on device .* is less"),
    ("import_error", r"\b(ModuleNotFoundError|ImportError)\b"),
    ("missing_secret", r"Environment variable '\w+' not found|api_key not configured"),
    ("missing_secret", r"\b(401 Client Error|Unauthorized|NoCredentialsError|AuthenticationError)"),
    ("transient", r"\b(ECC error|CUDA error: unknown error|NCCL error|unhandled system error)"),
    ("transient", r"\b(50[0234]) (Server Error|Service Unavailable|Bad Gateway|Slow ?Down)"),
    ("transient", r"\b(ConnectionResetError|ReadTimeout|ConnectTimeout|RemoteDisconnected)\b"),
)
_LOG_TAIL_CHARACTERS = 4000  # of a job's output, kept with a crash


class JobFailed(CompactHydraException):
    """A job failed; the message is one line."""


class LaunchRefused(CompactHydraException):
    """A launch is refused before anything runs; the message is one line that names the setting."""


class UserLeft(KeyboardInterrupt):
    """The user pressed Ctrl-C; the message says what became of the jobs."""


@dataclass(frozen=True)
class Failure:
    """Why a job failed: the kind (a key of `HINTS`), one line, and the traceback if there is one.

    `is_whole` if the line says all: it was written for the user, and nothing else caused it.

    >>> Failure("crash", "killed by SIGSEGV").hint({"crash": "update the driver"})
    'update the driver'
    """

    kind: str
    line: str
    traceback: str = ""
    is_whole: bool = False

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Classify an exception of the job by its text and that of its causes."""
        text = "".join(traceback.format_exception(error))
        if isinstance(error, HydraException):
            # By Hydra's convention such a message is written for the user as it is.
            line = str(error)
        elif isinstance(error, SystemExit):
            line = f"the job called sys.exit({error.code!r})"
        else:
            message = _one_line(str(error))
            line = f"{type(error).__name__}: {message}" if message else type(error).__name__
        if isinstance(error, MemoryError):
            return cls("out_of_host_memory", line, text)
        if isinstance(error, HydraException):
            is_whole = error.__cause__ is None and (
                error.__suppress_context__ or error.__context__ is None
            )
            return cls(_kind_of(line, default="user_code"), line, text, is_whole)
        last_line = text.rstrip().rpartition("\n")[2]
        return cls(_kind_of(f"{last_line}\n{line}", default="user_code"), line, text)

    @classmethod
    def of_exit(cls, status: int, log: str) -> Failure:
        """Classify the end of a job's process that left no result, by its status and output."""
        tail = log[-_LOG_TAIL_CHARACTERS:]
        kind = _kind_of(tail, default="crash")
        if status == -signal.SIGKILL:
            kind = "out_of_host_memory" if kind == "crash" else kind
            line = "killed by the system (SIGKILL), as when memory runs out"
        elif status < 0:
            line = f"killed by {signal.Signals(-status).name}"
        else:
            line = f"its process ended with status {status} and no result"
        return cls(kind, line, tail)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Failure:
        """Restore what `to_json` made."""
        return cls(
            record["kind"],
            record["line"],
            record.get("traceback", ""),
            record.get("is_whole", False),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the failure as plain data."""
        return asdict(self)

    def hint(self, hints: dict[str, str]) -> str:
        """Return what to change, by the application's own `hints` if they have the kind."""
        return hints.get(self.kind, HINTS.get(self.kind, ""))


def _kind_of(text: str, *, default: str) -> str:
    return next((kind for kind, pattern in _PATTERNS if re.search(pattern, text)), default)


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()
