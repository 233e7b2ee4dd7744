"""Hydra's own tests of launchers, passed by every backend."""

from __future__ import annotations

import subprocess
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
from hydra.version import VersionBase, __compat_version__
from hydra_plugins.modal_launcher.launcher import ModalJobsLauncher

from tests.fakes.control_plane import ControlPlane, Settings
from tests.support.forked import ForkingPopen
from tests.support.launching import settings
from tests.support.servers import launcher_server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Future Hydra versions:UserWarning"),
]


@dataclass(frozen=True)
class Place:
    """Overrides that choose a backend, and where it keeps the jobs' folders if not here."""

    overrides: list[str]
    outputs: Path | None = None


@pytest.fixture(autouse=True)
def version_base(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the suite's version base, whatever another test has left in this process."""
    monkeypatch.setattr(VersionBase.instance(), "version_base", __compat_version__)


@pytest.fixture(autouse=True)
def forked_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra's suite starts scripts, and this process starts jobs: both are forked, to save time."""
    server = launcher_server()
    server.wait_until_ready()
    monkeypatch.setattr(ForkingPopen, "address", server.address)
    monkeypatch.setattr(subprocess, "Popen", ForkingPopen)


@pytest.fixture(params=["local", "parallel", "debug", "modal"])
def place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    if request.param != "modal":
        backend = "debug" if request.param == "debug" else "local"
        at_once = 2 if request.param == "parallel" else 1
        yield Place(settings(gpu="local", backend=backend, max_parallel=at_once))
        return
    root = tmp_path_factory.mktemp("elsewhere")
    volumes = settings(
        volumes__cache=f"{root}/cache",
        volumes__outputs=f"{root}/outputs",
        volumes__experimenter="me",
        volumes__experiment_name="tests",
    )
    with ControlPlane(root / "plane", Settings(grace=1.0)) as plane:
        name = "hydra-jobs-outputs-me-tests"
        modal.Volume.from_name(name, create_if_missing=True).hydrate()
        yield Place(volumes, plane.volumes[name].folder)
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


@pytest.mark.parametrize("place", ["local", "debug", "modal"], indirect=True)
class TestApplications(IntegrationTestSuite):
    """Scripts in a process of their own, each with one job."""

    @pytest.fixture
    def task_launcher_cfg(self) -> dict[str, str]:
        return {}

    @pytest.fixture
    def extra_flags(self, place: Place, launcher_name: str) -> list[str]:
        self.outputs = place.outputs
        # One of the tests runs twice in one folder.
        resume = "hydra.launcher.resume=true"
        return ["-m", f"hydra/launcher={launcher_name}", resume, *place.overrides]

    def get_test_app_working_dir(self) -> Path | None:
        return self.outputs


def test_hydra_discovers_the_launcher() -> None:
    launchers = [launcher.__name__ for launcher in Plugins.instance().discover(Launcher)]
    assert ModalJobsLauncher.__name__ in launchers
