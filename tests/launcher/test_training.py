"""The project's own training as a job on Modal."""

from __future__ import annotations

import pytest

from tests.fakes.control_plane import ControlPlane
from tests.rl_experiments.training.test_training import assert_same, outcome
from tests.support.forked import ForkServer
from tests.support.launching import Client, wait_for
from tests.support.program import SMALL, Program
from tests.support.servers import training_server


@pytest.fixture
def container_server() -> ForkServer:
    """Containers have PyTorch imported."""
    return training_server()


def test_training_on_a_gpu_that_is_taken_away_equals_training_here(
    client: Client, plane: ControlPlane, run_in: Program, program_environment: dict[str, str]
) -> None:
    asked = [*SMALL, "model=tiny", "seed=3", "trainer.max_steps=6"]
    client.variables |= program_environment | plane.environment
    training = client.start("gpu=a10g", "name=modal", *asked, program="-m rl_experiments")
    checkpoints = client.remote(run="modal") / "checkpoints"
    wait_for(lambda: any(checkpoints.glob("*/manifest.json")))
    plane.preempt(client.call(run="modal"))
    run_in(client.folder, "gpu=local", "name=here", *asked).check_returncode()
    training.to_end()
    assert len(plane.call(client.call(run="modal")).attempts) == 2
    assert "[0] Going on from step" in training.out

    client.runs("runs", "pull", "modal", "--checkpoints")
    assert_same(outcome(client.job(run="modal")), outcome(client.job(run="here")))
