"""Optuna's sweeper drives the launcher: trials in batches, on this machine and on Modal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fakes.control_plane import ControlPlane
from tests.support.launching import Client, settings
from tests.support.program import Program

pytestmark = pytest.mark.slow

SWEEP = [
    "hydra/sweeper=optuna",
    "hydra.sweeper.n_trials=4",
    "hydra.sweeper.n_jobs=2",
    "hydra.sweeper.direction=maximize",
    "hydra.sweeper.sampler.seed=1",
]
NUMBERS = "x=range(0,20)"
PLACES = pytest.mark.parametrize("gpu", ["local", "null"])
TWO_AT_A_TIME = settings(max_parallel=2)


def best(run: Path) -> Any:
    return yaml.safe_load((run / "optimization_results.yaml").read_text())


def odd_fail(client: Client) -> list[str]:
    (client.folder / "there").touch()
    return ["do=fail_while_file_exists", f"text={client.folder}/there", *TWO_AT_A_TIME]


@PLACES
def test_the_best_trial_is_reported(client: Client, gpu: str) -> None:
    client.launch(*SWEEP, NUMBERS, *TWO_AT_A_TIME, f"gpu={gpu}")
    values, run = [result["value"] for result in client.results()], client.folder / "runs/toy"
    assert len(values) == 4
    assert best(run)["best_value"] == max(values)
    assert best(run)["best_params"] == {"x": int(max(values))}
    assert (run / "multirun.yaml").exists()


@PLACES
def test_a_failed_trial_is_not_the_end(client: Client, gpu: str) -> None:
    client.launch(
        *SWEEP, NUMBERS, *odd_fail(client), f"gpu={gpu}", "hydra.sweeper.max_failure_rate=1"
    )
    assert len(client.states()) == 4
    assert {*client.states()} == {"done", "failed"}
    values = [result["value"] for result in client.results() if result["state"] == "done"]
    run = client.folder / "runs/toy"
    assert best(run)["best_value"] == max(values)


def test_too_many_failed_trials_are_the_end(client: Client) -> None:
    done = client.launch(*SWEEP, NUMBERS, *odd_fail(client), "gpu=local", code=1)
    assert len(client.states()) == 2
    assert "the file exists" in done.out


@pytest.mark.parametrize("gpu", ["local", "t4"])
def test_optuna_tunes_an_evaluation_of_this_project(
    program: Program, plane: ControlPlane, tmp_path: Path, gpu: str
) -> None:
    space = ["policy=choice(random,merge_greedy)", "num_examples=40", "name=policies"]
    mounts = settings(volumes__cache=f"{tmp_path}/cache", volumes__outputs=f"{tmp_path}/outputs")
    done = program("evaluate", *SWEEP, *space, *mounts, f"gpu={gpu}", **plane.environment)
    assert done.returncode == 0, done.stderr
    trial = best(tmp_path / "runs" / "policies")
    assert trial["best_params"] == {"policy": "merge_greedy"}
    assert trial["best_value"] > 0.7
