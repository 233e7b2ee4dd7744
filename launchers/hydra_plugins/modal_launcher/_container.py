"""What runs in a Modal container: the function that a launch registers."""

from __future__ import annotations

from typing import Any


class AnotherAttempt(Exception):
    """Raised so that Modal runs the job again: in a new container, from its last checkpoint."""


def run(payload: dict[str, Any]) -> dict[str, Any]:
    """One attempt at a job, whose files are on the outputs volume. Returns its result."""
    import modal
    from hydra_plugins.modal_launcher._supervisor import Supervisor

    volume = modal.Volume.from_name(payload["outputs_volume"])
    volume.reload()
    supervisor = Supervisor(
        payload, emit=lambda line: print(line, flush=True), commit=volume.commit
    )
    result = supervisor.run()
    if result.get("again"):
        raise AnotherAttempt(result.get("failure", {}).get("line", "out of time"))
    return result


def _print(line: str) -> None:
    print(line, flush=True)
