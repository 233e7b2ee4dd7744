"""The function that runs in a Modal container, once for each attempt at a job."""

from __future__ import annotations

from typing import Any

from hydra_modal_jobs.text import print_line


class AnotherAttempt(Exception):
    """Raised so that Modal runs the job again, in a new container, from its last checkpoint.

    Its arguments are the kind of failure and a line, for the case that no attempts are left.
    """


def run(payload: dict[str, Any]) -> dict[str, Any]:
    """Make one attempt at a job, whose files are on the outputs volume. Return its result."""
    import modal
    from modal.exception import Error

    from hydra_modal_jobs.worker.supervisor import Retry, Supervisor

    volume = modal.Volume.from_name(payload["outputs_volume"])

    def commit() -> None:
        try:
            volume.commit()
        except Error as error:  # the files stay here, and the next commit takes them along
            print_line(f"the volume could not be committed: {error}")

    try:
        volume.reload()
        supervisor = Supervisor(payload, emit=lambda line: print(line, flush=True), commit=commit)
        result = supervisor.run()
    except (OSError, Error) as error:  # a fault of this machine or of the service, not of the job
        raise AnotherAttempt("transient", f"{type(error).__name__}: {error}") from None
    if isinstance(result, Retry):
        raise AnotherAttempt(result.kind, result.line)
    return result.to_json()
