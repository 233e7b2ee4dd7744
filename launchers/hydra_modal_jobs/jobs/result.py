"""How a job ended, as one attempt leaves it and as `result.json` keeps it."""

from __future__ import annotations

import base64
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hydra_modal_jobs.errors import Failure
from hydra_modal_jobs.files import read_json, write_json
from hydra_modal_jobs.paths import FORMAT_VERSION, RESULT_FILE

# The states in which a job stays until it is launched again.
FINAL_STATES = ("done", "failed", "stopped", "cancelled")
CTRL_C = "Ctrl-C"  # the reason of a job that the user cancelled by it


@dataclass
class Outcome:
    """How the process of a job ended: `done`, `failed` or `interrupted`.

    `returned` is the value in the form that `pack` makes. `last_words` is the message of the
    `KeyboardInterrupt` that ended an interrupted job.
    """

    state: str
    failure: Failure | None = None
    returned: dict[str, Any] = field(default_factory=dict)
    working_dir: str = ""
    task_name: str = ""
    last_words: str = ""

    @classmethod
    def read(cls, path: Path) -> Outcome | None:
        """Read what `write` wrote; None if there is no whole file."""
        record = read_json(path)
        if record is None:
            return None
        failure = record.pop("failure")
        return cls(**record, failure=Failure.from_json(failure) if failure else None)

    def write(self, path: Path) -> None:
        """Write the outcome for the supervisor of the process."""
        write_json(path, asdict(self))


@dataclass
class JobResult:
    """How a job ended, over all attempts of its last launch.

    `reason` says why it was stopped ("time", "budget") or cancelled ("Ctrl-C"). `seconds` and
    `usd` are sums over the attempts; `seconds` is None if the job could not write them itself.
    """

    state: str
    reason: str = ""
    failure: Failure | None = None
    returned: dict[str, Any] = field(default_factory=dict)
    working_dir: str = ""
    last_words: str = ""
    launch: str = ""
    attempts: int = 1
    seconds: float | None = None
    usd: float = 0.0
    cost_key: str = ""
    status: dict[str, Any] = field(default_factory=dict)
    link: str = ""
    ended: float = 0.0

    @property
    def is_done(self) -> bool:
        """Whether the job returned a value."""
        return self.state == "done"

    @property
    def value(self) -> Any:
        """The value that the job returned; None if it has none."""
        return unpack(self.returned)

    @classmethod
    def read(cls, job_folder: Path) -> JobResult | None:
        """Read the result of a job; None if it has not ended."""
        record = read_json(job_folder / RESULT_FILE)
        return cls.from_json(record) if isinstance(record, dict) and "state" in record else None

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> JobResult:
        """Restore a result, also one without a format version."""
        plain = ("reason", "working_dir", "last_words", "launch", "attempts", "seconds", "usd")
        given = {name: record[name] for name in (*plain, "link", "ended") if name in record}
        return cls(
            state=record["state"],
            failure=Failure.from_json(record["failure"]) if record.get("failure") else None,
            returned={k: record[k] for k in ("value", "pickle", "lost") if k in record},
            cost_key=record.get("shape", ""),
            status=record.get("status") or {},
            **given,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain data."""
        record = {"format_version": FORMAT_VERSION, **asdict(self)}
        returned, record["shape"] = record.pop("returned"), record.pop("cost_key")
        optional = ("failure", "reason", "last_words", "link", "seconds")
        kept = {k: v for k, v in record.items() if k not in optional or v not in (None, "")}
        return {**kept, **returned}

    def write(self, job_folder: Path) -> None:
        """Write `result.json`. A full disk does not hide the failure that it caused."""
        try:
            write_json(job_folder / RESULT_FILE, self.to_json())
        except OSError:
            if self.is_done:
                raise


def pack(value: Any) -> dict[str, Any]:
    """Return a value as `{"value": ...}` if JSON keeps it, else pickled as `{"pickle": ...}`.

    A value that cannot be pickled becomes None, with the reason under `lost`.
    """
    try:
        if json.loads(json.dumps(value)) == value and not isinstance(value, tuple):
            return {"value": value}
    except (TypeError, ValueError):
        pass
    import cloudpickle

    try:
        return {"pickle": base64.b64encode(cloudpickle.dumps(value)).decode()}
    except Exception as error:
        return {"value": None, "lost": f"the returned value cannot be pickled: {error}"}


def unpack(returned: dict[str, Any]) -> Any:
    """Return the value that `pack` was given."""
    if "pickle" not in returned:
        return returned.get("value")
    import pickle

    return pickle.loads(base64.b64decode(returned["pickle"]))
