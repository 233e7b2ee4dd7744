"""What went wrong with a job: its kind, a line, and what to change."""

from __future__ import annotations

import re
import signal
import traceback
from dataclasses import asdict, dataclass
from typing import Any

from hydra.errors import CompactHydraException, HydraException

KINDS = {
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
# Kinds that a second attempt can mend; a preempted one is run again without being counted.
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


class JobFailed(CompactHydraException):
    """A job's failure in one line, as its launch reports it."""


class LaunchRefused(CompactHydraException):
    """What is wrong before anything runs: one line that names the setting to change."""


@dataclass(frozen=True)
class Failure:
    kind: str
    line: str
    traceback: str = ""

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """An exception of the job, classed by what it and its causes say."""
        text = "".join(traceback.format_exception(error))
        if isinstance(error, HydraException):
            # Hydra's own convention: such a message is written for the user as it is.
            line = str(error)
        elif isinstance(error, SystemExit):
            line = f"the job called sys.exit({error.code!r})"
        else:
            said = _one_line(str(error))
            line = f"{type(error).__name__}: {said}" if said else type(error).__name__
        if isinstance(error, MemoryError):
            return cls("out_of_host_memory", line, text)
        if isinstance(error, HydraException):
            return cls(_kind_of(line, default="user_code"), line, text)
        last = text.rstrip().rpartition("\n")[2]
        return cls(_kind_of(f"{last}\n{line}", default="user_code"), line, text)

    @classmethod
    def of_exit(cls, status: int, log: str) -> Failure:
        """A job's process that ended without a result."""
        kind = _kind_of(log[-4000:], default="crash")
        if status == -signal.SIGKILL:
            kind = "out_of_host_memory" if kind == "crash" else kind
            said = "killed by the system (SIGKILL), as when memory runs out"
        elif status < 0:
            said = f"killed by {signal.Signals(-status).name}"
        else:
            said = f"its process ended with status {status} and no result"
        return cls(kind, said, log[-4000:])

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Failure:
        return cls(record["kind"], record["line"], record.get("traceback", ""))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def hint(self, hints: dict[str, str]) -> str:
        return hints.get(self.kind, KINDS.get(self.kind, ""))


def _kind_of(text: str, *, default: str) -> str:
    return next((kind for kind, pattern in _PATTERNS if re.search(pattern, text)), default)


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()
