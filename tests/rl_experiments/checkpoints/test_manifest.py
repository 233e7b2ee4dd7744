"""Complete checkpoints, damaged ones, and the one that a user means."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from rl_experiments.checkpoints.local import latest_complete, latest_valid, remove_unfinished
from rl_experiments.checkpoints.manifest import CorruptCheckpoint, Manifest, is_complete, verify
from rl_experiments.checkpoints.resolve import locate, resolve
from rl_experiments.errors import UserError
from tests.support.stores import make_checkpoint


def damage(checkpoint: Path) -> None:
    """Change one byte of the weights; the size stays."""
    weights = bytearray((checkpoint / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (checkpoint / "model.safetensors").write_bytes(weights)


def test_a_look_reads_no_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2):
        make_checkpoint(tmp_path / "checkpoints", step)
    (tmp_path / "checkpoints/checkpoint-3").mkdir()  # it was never finished
    newest = tmp_path / "checkpoints/checkpoint-2"
    monkeypatch.setattr(hashlib, "file_digest", pytest.fail)
    assert latest_complete(tmp_path / "checkpoints") == newest
    assert locate(str(tmp_path)) == locate(str(newest)) == newest


def test_a_damaged_checkpoint_is_passed_over_when_it_is_loaded(tmp_path: Path) -> None:
    for step in (1, 2):
        make_checkpoint(tmp_path / "0/checkpoints", step)
    first, second = (tmp_path / f"0/checkpoints/checkpoint-{step}" for step in (1, 2))
    assert resolve(str(tmp_path)) == second and verify(second)
    damage(second)
    assert is_complete(second) and not verify(second)
    assert latest_valid(tmp_path / "0/checkpoints") == first
    assert resolve(str(tmp_path)) == first
    with pytest.raises(UserError, match="it is damaged, or was changed"):
        resolve(str(second))


def test_a_checkpoint_whose_file_is_cut_off_is_not_complete(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path, 1)
    (checkpoint / "optimizer.pt").write_bytes(b"")
    assert not is_complete(checkpoint) and not verify(checkpoint)
    assert latest_complete(tmp_path) is None


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    for path, line in ((tmp_path / "absent", "no such folder"), (tmp_path, "holds no checkpoint")):
        with pytest.raises(UserError, match=line):
            resolve(str(path))
    (tmp_path / "config.json").touch()  # any model in a folder will do
    assert resolve(str(tmp_path)) == tmp_path


def test_a_manifest_has_a_version_and_is_read_without_one(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path, 1)
    content = json.loads((checkpoint / "manifest.json").read_text())
    assert content.pop("format_version") == 1
    assert Manifest.parse(json.dumps(content)) == Manifest.read(checkpoint)
    with pytest.raises(CorruptCheckpoint, match="newer format 2"):
        Manifest.parse(json.dumps({**content, "format_version": 2}))


@pytest.mark.parametrize(
    "text", ["", "[]", "null", '{"step": 1}', '{"step": 1, "files": {"../x": [1, "a"]}}']
)
def test_a_strangers_manifest_is_refused(text: str) -> None:
    with pytest.raises(CorruptCheckpoint):
        Manifest.parse(text)


def test_a_checkpoint_that_could_not_be_written_leaves_the_systems_own_error(
    tmp_path: Path,
) -> None:
    def error_for(error: Exception, cause: Exception | None = None) -> Exception:
        (tmp_path / "checkpoint-1").mkdir()
        (tmp_path / "checkpoint-1/weights").write_bytes(b"half")
        error.__cause__ = cause
        raised = remove_unfinished(tmp_path, step=1, error=error)
        assert list(tmp_path.iterdir()) == []
        return raised

    full = OSError(28, os.strerror(28))
    assert error_for(RuntimeError("writing failed"), cause=full) is full
    rust = error_for(ValueError("I/O error: No space left on device (os error 28)"))
    assert isinstance(rust, OSError) and rust.errno == 28
    for words in ("PytorchStreamWriter failed writing file", "inline_container.cc: unexpected pos"):
        torch = error_for(RuntimeError(words))
        assert isinstance(torch, UserError) and words in str(torch)
    other = RuntimeError("no write at all")
    assert error_for(other) is other
