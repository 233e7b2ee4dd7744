"""A small run with LoRA that the export tests start from."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.rl_experiments.export.exporting import LORA
from tests.support.program import Program


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, run_in: Program) -> Path:
    """Returns a folder with runs/lora, whose base model is in the cache."""
    cwd = tmp_path_factory.mktemp("trained")
    run_in(cwd, *LORA, "name=lora").check_returncode()
    return cwd


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copies the run, and works in the folder from which its name is enough; returns the job."""
    shutil.copytree(trained / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "runs/lora/0"
