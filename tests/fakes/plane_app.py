"""How the tests of the stand-in for Modal use it: an app with one function, `plane_jobs.run`."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import modal
import pytest

from tests.fakes.control_plane import ControlPlane, Settings
from tests.support.servers import launcher_server

SECONDS = 120.0  # after which something that should have happened never will
JOBS = Path(__file__).parent / "control_plane" / "jobs"


@pytest.fixture
def plane(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ControlPlane]:
    """A stand-in for Modal that this process's client talks to."""
    monkeypatch.syspath_prepend(str(JOBS))
    settings = Settings(grace=1.0, container_environment={"OMP_NUM_THREADS": "1"})
    with ControlPlane(tmp_path / "plane", settings) as plane:
        yield plane
        assert plane.errors == []


def new_image() -> Any:
    """Return an image with the module of the bodies."""
    image = modal.Image.debian_slim(python_version="3.11").uv_pip_install("trl==1.16.0")
    return image.env({"COLOUR": "dark blue"}).add_local_python_source("plane_jobs")


def new_app() -> Any:
    """Return an app without functions."""
    return modal.App(include_source=False)


def register(app: Any, image: Any = None, **options: Any) -> Any:
    """Add the function `train` to the app; its body is `plane_jobs.run`."""
    body = importlib.import_module("plane_jobs").run
    return app.function(name="train", image=image or new_image(), **options)(body)


def do(name: str, /, **arguments: Any) -> dict[str, Any]:
    """Return the input that has `plane_jobs.run` call this function of its module."""
    return {"do": name, "with": arguments}


def run_python(plane: ControlPlane, *arguments: str) -> tuple[int, str]:
    """Run `python ARGUMENTS` as another client; return its exit status and what it printed."""
    process = launcher_server().start(
        arguments,
        cwd=plane.state.root,
        env={**os.environ, **plane.environment},
        stdout=subprocess.PIPE,
        text=True,
    )
    printed, _ = process.communicate(timeout=SECONDS)
    return process.wait(), printed


def elsewhere(plane: ControlPlane, program: str) -> Any:
    """Return what a program in another process prints as JSON."""
    (plane.state.root / "program.py").write_text(f"import json, modal\n{program}")
    status, printed = run_python(plane, "program.py")
    assert status == 0
    return json.loads(printed)


def gone(process_id: int) -> bool:
    """Tell whether the process has ended, be it only as a zombie."""
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return True
    return "Z" in Path(f"/proc/{process_id}/stat").read_text().split()[2]


def wait_for(condition: Callable[[], object]) -> None:
    """Wait until the condition holds."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "the condition never came to hold"
        time.sleep(0.05)
