"""The launcher's own wheel in an empty environment, used by another application."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.control_plane import ControlPlane
from tests.support.launching import settings
from tests.support.paths import CHECKOUT

pytestmark = pytest.mark.slow

APPLICATION = {
    "train.py": """
        import importlib.util, json
        from importlib import resources
        from pathlib import Path
        import hydra, hydra_plugins.modal_launcher
        from hydra.core.hydra_config import HydraConfig
        import beside

        @hydra.main(version_base="1.3", config_path="conf", config_name="config")
        def main(config):
            import later  # which the launch itself has not
            words = resources.files("beside").joinpath("data/words.txt").read_text().split()
            scale = hydra.utils.instantiate(config.scale)
            assert not Path("broken").exists()
            print("the word is", words[config.number])
            seen = {
                "plugin": hydra_plugins.modal_launcher.__file__,
                "package": beside.__file__,
                "project": importlib.util.find_spec("rl_experiments.cli") is not None,
            }
            folder = Path(HydraConfig.get().runtime.output_dir)
            (folder / "seen.json").write_text(json.dumps(seen))
            return scale(later.length(words[config.number]))

        if __name__ == "__main__":
            main()
        """,
    "later.py": "def length(word): return float(len(word))",
    "scales.py": "class Times:\n    def __init__(self, by): self.by = by\n"
    "    def __call__(self, value): return self.by * value",
    "beside/__init__.py": "",
    "beside/data/words.txt": "one three thirteen",
    "conf/config.yaml": "defaults: [scale: ten, _self_, override hydra/launcher: modal_jobs]\n"
    "number: 1",
    "conf/scale/ten.yaml": "_target_: scales.Times\nby: 10",
}


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Python of an environment with the wheel and the dependencies of the tests."""
    folder = tmp_path_factory.mktemp("environment")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    alone = ["--no-deps", "--no-index"]
    build = [*alone, "--no-build-isolation", f"--wheel-dir={folder}", f"{CHECKOUT}/launchers"]
    subprocess.run([*pip, "wheel", *build], check=True)
    (wheel,) = folder.glob("hydra_modal_jobs-*.whl")
    python = folder / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    subprocess.run([*pip, "--python", python, "install", *alone, wheel], check=True)
    (library,) = folder.glob("venv/lib/*/site-packages")
    # The .pth files there, one of which is the checkout's, are not read.
    (library / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return python


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder to launch from; the application is in another one."""
    for name, text in APPLICATION.items():
        (tmp_path / "app" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "app" / name).write_text(text.replace("\n        ", "\n"))
    (tmp_path / "here").mkdir()
    return tmp_path / "here"


def run(folder: Path, *words: Any, code: int = 0, variables: dict[str, str] | None = None) -> str:
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        words, cwd=folder, env=environment | (variables or {}), capture_output=True, text=True
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def launch(
    python: Path,
    folder: Path,
    *overrides: str,
    code: int = 0,
    variables: dict[str, str] | None = None,
) -> list[dict[str, Any]]:
    """Launch jobs and return what they have left here, in order."""
    words = [folder.parent / "app" / "train.py", "-m", "hydra.sweep.dir=multirun/first"]
    run(folder, python, *words, *overrides, code=code, variables=variables)
    return results(folder)


def results(folder: Path) -> list[dict[str, Any]]:
    jobs = sorted((folder / "multirun" / "first").glob("[0-9]"))
    return [
        {
            **json.loads((job / ".job" / "result.json").read_text()),
            **(json.loads((job / "seen.json").read_text()) if (job / "seen.json").exists() else {}),
        }
        for job in jobs
    ]


def test_the_environment_has_nothing_of_the_checkout(python: Path, tmp_path: Path) -> None:
    program = "import json, sys, hydra_modal_jobs as it\n"
    program += "print(json.dumps([it.__file__, *sys.path]))"
    plugin, *path = json.loads(run(tmp_path, python, "-c", program))
    assert Path(plugin).is_relative_to(python.parents[1])
    assert not {str(CHECKOUT), str(CHECKOUT / "launchers")} & {*path}


@pytest.mark.parametrize("numbers, values", [("1", [50.0]), ("0,2", [30.0, 80.0])])
def test_jobs_on_this_machine_need_nothing_of_the_checkout(
    python: Path, folder: Path, numbers: str, values: list[float]
) -> None:
    local = settings(gpu="local", max_parallel=2)
    jobs = launch(python, folder, f"number={numbers}", *local)
    assert [job["value"] for job in jobs] == values
    assert all(Path(job["plugin"]).is_relative_to(python.parents[1]) for job in jobs)
    assert not any(job["project"] for job in jobs)


@pytest.mark.parametrize("numbers, values", [("1", [50.0]), ("0,2", [30.0, 80.0])])
def test_jobs_on_modal_need_nothing_of_the_checkout(
    plane: ControlPlane, python: Path, folder: Path, numbers: str, values: list[float]
) -> None:
    mounts = folder.parent / "mounts"
    volumes = settings(volumes__cache=f"{mounts}/cache", volumes__outputs=f"{mounts}/outputs")
    jobs = launch(python, folder, f"number={numbers}", *volumes, variables=plane.environment)
    assert [job["value"] for job in jobs] == values
    for job in jobs:
        files = [Path(job["plugin"]), Path(job["package"])]
        assert all(file.is_relative_to(plane.state.root / "containers") for file in files)
        assert not job["project"]
    assert "the word is" in (folder / "multirun" / "first" / "0" / "log.txt").read_text()
    listed = run(folder, python, "-m", "hydra_modal_jobs", "runs")
    assert "first" in listed and f"{len(values)} done" in listed


def test_a_script_is_resumed_and_attached_to(python: Path, folder: Path) -> None:
    """The process was not started as the script; to attach, it imports nothing of it."""
    (folder / "broken").touch()
    jobs = launch(python, folder, *settings(gpu="local"), code=1)
    assert [job["state"] for job in jobs] == ["failed"]
    (folder / "broken").unlink()
    run(folder, python, "-m", "hydra_modal_jobs", "resume", "first")
    assert [job["value"] for job in results(folder)] == [50.0]
    (folder.parent / "app").rename(folder.parent / "moved")
    seen = run(folder, python, "-m", "hydra_modal_jobs", "runs", "attach", "first")
    assert "done" in seen
