"""Hydra's own suite for launchers: in this process, in processes of their own, and on Modal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import modal
import pytest
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.test_utils.launcher_common_tests import (
    BatchedSweeperTestSuite,
    IntegrationTestSuite,
    LauncherTestSuite,
)
from hydra_plugins.modal_launcher.launcher import ModalJobsLauncher

from tests.control_plane import ControlPlane, Settings


@dataclass(frozen=True)
class Place:
    """Overrides that send the jobs there, and where their folders are if not on this machine."""

    overrides: list[str]
    outputs: Path | None = None


@pytest.fixture(params=["local", "processes", "modal"])
def place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    if request.param != "modal":
        count = 1 if request.param == "local" else 2
        yield Place(["hydra.launcher.gpu=local", f"hydra.launcher.max_parallel={count}"])
        return
    monkeypatch.setenv("EXPERIMENTER", "me")
    with ControlPlane(tmp_path / "plane", Settings(grace=1.0)) as plane:
        modal.Volume.from_name("hydra-jobs-outputs-me-default", create_if_missing=True).hydrate()
        paths = [f"hydra.launcher.volumes.{v}={tmp_path}/{v}" for v in ("cache", "outputs")]
        outputs = plane.volumes["hydra-jobs-outputs-me-default"].folder
        yield Place(["hydra.launcher.gpu=null", *paths], outputs)
        assert plane.errors == []
        assert all(app.stopped for app in plane.apps)


@pytest.fixture
def launcher_name() -> str:
    return "modal_jobs"


@pytest.fixture
def overrides(place: Place) -> list[str]:
    return place.overrides


class TestLauncher(LauncherTestSuite):
    pass


class TestBatches(BatchedSweeperTestSuite):
    @pytest.fixture
    def overrides(self, place: Place) -> list[str]:
        return [*place.overrides, "hydra.sweeper.max_batch_size=2"]


@pytest.mark.parametrize("place", ["local", "modal"], indirect=True)
class TestApplications(IntegrationTestSuite):
    """Scripts in a process of their own, each with one job."""

    @pytest.fixture
    def task_launcher_cfg(self) -> dict[str, str]:
        return {}

    @pytest.fixture
    def extra_flags(self, place: Place, launcher_name: str) -> list[str]:
        self.outputs = place.outputs
        return ["-m", f"hydra/launcher={launcher_name}", *place.overrides]

    def get_test_app_working_dir(self) -> Path | None:
        return self.outputs


def test_discovery() -> None:
    assert ModalJobsLauncher in Plugins.instance().discover(Launcher)
