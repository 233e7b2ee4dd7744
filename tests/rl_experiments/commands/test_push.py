"""The verb push: which runs and stores it accepts."""

from __future__ import annotations

from pathlib import Path

import pytest

from rl_experiments.checkpoints import lease
from rl_experiments.checkpoints.manifest import finalize
from rl_experiments.commands.push import push
from rl_experiments.errors import UserError


@pytest.fixture(autouse=True)
def no_other_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the time that a lease in a folder is given to show another writer."""
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 0.0)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes the folder of a run with two jobs, of which the first has a checkpoint."""
    for job in ("0", "1"):
        folder = tmp_path / "runs/sweep" / job
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text("checkpoint: {store: null, project: p}\n")
    checkpoint = tmp_path / "runs/sweep/0/checkpoints/checkpoint-3"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    finalize(checkpoint.parent, step=3)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs/sweep"


@pytest.mark.parametrize("store", ["store", "'store'"])
@pytest.mark.parametrize("name", ["sweep", "runs/sweep"])
def test_what_is_missing_goes_to_the_store_that_is_given(
    run: Path, name: str, store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    push([name, f"checkpoint.store={store}"])
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "runs/sweep/0: steps 3 are in store",
        "runs/sweep/1: steps none are in store",
    ]
    assert [path.read_bytes() for path in Path("store").rglob("model.safetensors")] == [b"weights"]


def test_mistakes_name_what_to_give(run: Path) -> None:
    for words, message in (
        ([], "push takes one run: push RUN [checkpoint.store=...]"),
        (["sweep", "other"], "push takes one run: push RUN [checkpoint.store=...]"),
        (["other"], "other: no such run in runs/"),
        (["sweep"], "runs/sweep/0: was run without checkpoint.store=...; give one"),
    ):
        with pytest.raises(UserError) as refused:
            push(words)
        assert str(refused.value) == message


@pytest.mark.parametrize("content", ["{", "a: [", "\x00", "- 1", "checkpoint: 3", ""])
def test_one_broken_job_hides_no_other(
    run: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for job in ("00", "2"):  # before and after the good one
        (run / job).mkdir()
        (run / job / "config.yaml").write_text(content)
    with pytest.raises(UserError) as refused:
        push(["sweep", "checkpoint.store=store"])
    out, err = capsys.readouterr()
    assert "runs/sweep/0: steps 3 are in store" in out
    bad = [line for line in err.splitlines() if "config.yaml: " in line]
    assert len(bad) == 1 and bad[0].startswith("runs/sweep/2/config.yaml: ")
    assert str(refused.value).startswith("runs/sweep/00/config.yaml: ")
    assert "take it from another copy" in str(refused.value)


def test_an_address_cannot_steer_the_terminal(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    push(["sweep", "checkpoint.store='sto\x1b[2J'"])
    assert "\x1b" not in capsys.readouterr().out
