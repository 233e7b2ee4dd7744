"""What runs in a Modal container: the function that a launch registers."""

from __future__ import annotations

from typing import Any


class AnotherAttempt(Exception):
    """Raised so that Modal runs the job again: in a new container, from its last checkpoint.

    Its arguments are the kind of failure and a line, for when no attempts are left.
    """


def run(payload: dict[str, Any]) -> dict[str, Any]:
    """One attempt at a job, whose files are on the outputs volume. Returns its result."""
    import modal
    from modal.exception import Error

    from hydra_modal_jobs.worker.supervisor import Supervisor

    volume = modal.Volume.from_name(payload["outputs_volume"])

    def commit() -> None:
        try:
            volume.commit()
        except Error as error:  # what is written stays; the next commit takes it along
            print(f"the volume could not be committed: {error}", flush=True)

    try:
        volume.reload()
        supervisor = Supervisor(payload, emit=lambda line: print(line, flush=True), commit=commit)
        result = supervisor.run()
    except (OSError, Error) as error:  # of this machine or of the service, not of the job
        raise AnotherAttempt("transient", f"{type(error).__name__}: {error}") from None
    if result.get("again"):
        failure = result.get("failure", {})
        raise AnotherAttempt(failure.get("kind", "timeout"), failure.get("line", "out of time"))
    return result
