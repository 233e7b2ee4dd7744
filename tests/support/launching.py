"""How the tests launch the toy application of `launcher_app`, against Modal's stand-in."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.control_plane import ControlPlane, Settings
from tests.support.forked import ForkServer
from tests.support.paths import LAUNCHER_APP
from tests.support.servers import launcher_server

HANG_SECONDS = 300  # after which what a test waits for is taken to hang
TOY = "toy"
DEVNULL = subprocess.DEVNULL


class Client:
    """A folder to launch from; the runs are in `runs/` there."""

    def __init__(self, plane: ControlPlane, folder: Path) -> None:
        self.plane = plane
        self.folder = folder
        self.mounts = folder.parent / "mounts"
        self.programs: list[Program] = []
        self.variables = {
            **os.environ,
            **plane.environment,
            "PYTHONPATH": python_path(LAUNCHER_APP),
            "PYTHONDONTWRITEBYTECODE": "1",
            "COLUMNS": "160",
        }

    def launch(self, *overrides: str, code: int = 0, **options: Any) -> Program:
        """Launch the toy, or the `program`, and wait until it ends with this exit status."""
        return self.start(*overrides, **options).to_end(code=code)

    def runs(self, *words: str, code: int = 0) -> Program:
        """Run `runs attach toy` and the like to the end."""
        return self.start_runs(*words).to_end(code=code)

    def start_runs(self, *words: str) -> Program:
        words = ("-m", "hydra_modal_jobs", *words, "--root=runs")
        return self._begin([*words], self.variables)

    def start(
        self,
        *overrides: str,
        program: str = "-m toy",
        variables: Mapping[str, str] | None = None,
        stdin: int = DEVNULL,
        stdout: int | None = None,
    ) -> Program:
        """Launch the toy, or the `program`, and return at once."""
        volumes = settings(
            volumes__cache=f"{self.mounts}/cache",
            volumes__outputs=f"{self.mounts}/outputs",
            volumes__experimenter="me",
            volumes__experiment_name="tests",
        )
        words = [*program.split(), *overrides, *volumes]
        return self._begin(words, {**self.variables, **(variables or {})}, stdin, stdout)

    def _begin(
        self,
        words: list[str],
        variables: dict[str, str],
        stdin: int = DEVNULL,
        stdout: int | None = None,
    ) -> Program:
        self.programs.append(Program(words, self.folder, variables, stdin, stdout))
        return self.programs[-1]

    def call(self, num: int = 0, *, run: str = TOY) -> str:
        """Wait until the manifest has the id of a job's call, and return it."""

        def call_in_manifest() -> str | None:
            jobs = read_json(self.folder / "runs" / run / "launch.json", default={"jobs": []})
            return next((job["call"] for job in jobs["jobs"] if job["num"] == num), None)

        return str(wait_for(call_in_manifest))

    def job(self, num: int = 0, *, run: str = TOY) -> Path:
        return self.folder / "runs" / run / str(num)

    def results(self, *, run: str = TOY) -> list[dict[str, Any]]:
        folders = sorted(
            (self.folder / "runs" / run).glob("*/.job"), key=lambda f: int(f.parts[-2])
        )
        return [read_json(folder / "result.json", default={}) for folder in folders]

    def states(self, *, run: str = TOY) -> list[str]:
        return [result.get("state", "-") for result in self.results(run=run)]

    def remote(self, num: int = 0, *, run: str = TOY) -> Path:
        """Return a job's folder on the outputs volume, as soon as there is the volume."""

        def outputs() -> Path | None:
            volumes = self.plane.volumes.items()
            return next((v.folder for name, v in volumes if "-outputs-" in name), None)

        return Path(wait_for(outputs)) / run / str(num)

    def wait_step(self, step: int, num: int = 0, *, run: str = TOY) -> None:
        """Wait until the job has a checkpoint of that step on the volume."""
        wait_for(lambda: (self.remote(num, run=run) / "checkpoints" / str(step)).exists())


class Program:
    """A command that runs; what it has printed is in `out` and `err`.

    Its output goes to the file descriptor `stdout` instead, if there is one.
    """

    def __init__(
        self,
        words: list[str],
        folder: Path,
        variables: dict[str, str],
        stdin: int = DEVNULL,
        stdout: int | None = None,
    ) -> None:
        count = len(list(folder.glob("*.out")))
        self._out, self._err = folder / f"{count}.out", folder / f"{count}.err"
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = launcher_server().start(
                words,
                cwd=folder,
                env=variables,
                stdin=stdin,
                stdout=out if stdout is None else stdout,
                stderr=err,
            )

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def wait(self, words: str, times: int = 1) -> None:
        """Wait until the command has printed the words so many times."""

        def has_printed() -> bool:
            is_over = self.process.poll() is not None
            is_there = self.out.count(words) >= times
            assert is_there or not is_over, self.out + self.err
            return is_there

        wait_for(has_printed)

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        self.process.kill_group()

    def to_end(self, *, code: int = 0) -> Program:
        self.process.wait(timeout=HANG_SECONDS)
        assert self.process.returncode == code, self.out + self.err
        return self

    @property
    def line(self) -> str:
        """The one line on stderr, beside the one that Hydra always prints there."""
        lines = [line for line in self.err.splitlines() if line and "HYDRA_FULL_ERROR" not in line]
        assert len(lines) == 1, self.err
        return lines[0]


def python_path(*folders: Path) -> str:
    """Return the PYTHONPATH of this process with these folders before it."""
    return os.pathsep.join([*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])])


def settings(**values: object) -> list[str]:
    """Return overrides of the launcher's settings; `image__pip` is its `image.pip`."""
    return [
        f"++hydra.launcher.{name.replace('__', '.')}={json.dumps(value)}"
        for name, value in values.items()
    ]


def wait_for(condition: Callable[[], Any], seconds: float = HANG_SECONDS) -> Any:
    """Wait until the condition holds, and return its value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    return value


def read_json(path: Path, *, default: Any) -> Any:
    return json.loads(path.read_text()) if path.exists() else default


def json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def container_server() -> ForkServer:
    """The server that forks the containers; a test file may have another."""
    return launcher_server()


@pytest.fixture
def plane(tmp_path: Path, container_server: ForkServer) -> Iterator[ControlPlane]:
    """A stand-in for Modal."""
    settings = Settings(
        grace=10.0,
        most_containers=9,
        container_environment={"OMP_NUM_THREADS": "1"},
        python=container_server,
    )
    with ControlPlane(tmp_path / "plane", settings) as plane:
        yield plane
        assert plane.errors == []


@pytest.fixture
def client(plane: ControlPlane, tmp_path: Path) -> Iterator[Client]:
    (tmp_path / "client").mkdir()
    client = Client(plane, tmp_path / "client")
    yield client
    for program in client.programs:
        program.kill()
