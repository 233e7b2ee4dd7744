"""The folders in which models are built do not outlive their processes for long."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rl_experiments.errors import UserError
from rl_experiments.export.destinations import building_folder, open_destination


def test_the_next_export_removes_what_a_killed_one_has_left(tmp_path: Path) -> None:
    for name in (".export-killed", ".export-earlier", ".export-new"):
        (tmp_path / name / "model").mkdir(parents=True)
        (tmp_path / name / "model/model.safetensors").write_bytes(b"weights")
    (tmp_path / ".export-killed/.lock").touch()
    os.utime(tmp_path / ".export-earlier", (0, 0))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").touch()
    with building_folder(tmp_path) as building:
        (building / "model").mkdir()
        # Even a command that is refused cleans up, but not what another process builds.
        with pytest.raises(UserError, match="there is something already"):
            open_destination(str(tmp_path / "taken"))
        left = {path.name for path in tmp_path.iterdir()}
        assert left == {"taken", building.name, ".export-new"}
    assert {path.name for path in tmp_path.iterdir()} == {"taken", ".export-new"}
