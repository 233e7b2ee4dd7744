"""Run folders and checkpoints written by commit 2f028d5 still work.

`data/runs_of_2f028d5.tar.gz` holds two of its runs of a tiny model, with 4 of 4 steps done: `old`
with all weights trained (its first job), and `lora` with an adapter. In their texts, the folders
of the machine are replaced by the words below. Left out is what nothing reads: `.hydra/`, the
picture, and the pickled `training_args.bin` of the checkpoints.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.support.paths import CHECKOUT
from tests.support.program import Program

ARCHIVE = Path(__file__).parent / "data" / "runs_of_2f028d5.tar.gz"
SETTINGS = [
    "num_examples=12",
    "env.max_moves=8",
    "trainer.num_generations=4",
    "trainer.per_device_train_batch_size=4",
    "trainer.steps_per_generation=2",
    "checkpoint.every_steps=2",
    "checkpoint.keep_latest=1",
    "model.scratch.warmup_episodes=40",
    "model.scratch.warmup_steps=20",
    "model.scratch.hidden_size=16",
    "model.scratch.head_dim=8",
    "model.scratch.intermediate_size=16",
]


@pytest.fixture
def runs(tmp_path: Path, program_environment: dict[str, str]) -> Path:
    """The folder with the old runs, as if they had been run in this folder."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    words = {
        "@WORKING_FOLDER@": str(tmp_path),
        "@CACHE@": program_environment["XDG_CACHE_HOME"],
        "@CHECKOUT@": str(CHECKOUT),
    }
    for path in (tmp_path / "runs").rglob("*"):
        if path.is_file() and path.suffix in (".json", ".md"):
            text = path.read_text()
            for word, folder in words.items():
                text = text.replace(word, folder)
            path.write_text(text)
    for manifest in (tmp_path / "runs").glob("*/0/checkpoints/*/manifest.json"):
        hash_anew(manifest.parent)
    return tmp_path / "runs"


def hash_anew(checkpoint: Path) -> None:
    """Set the sizes and hashes in a manifest to those of the files, in the old format."""
    content = json.loads((checkpoint / "manifest.json").read_text())
    for name in content["files"]:
        data = (checkpoint / name).read_bytes()
        content["files"][name] = [len(data), hashlib.sha256(data).hexdigest()]
    (checkpoint / "manifest.json").write_text(json.dumps(content, indent=1))


def steps(run: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_the_files_are_of_the_format_without_versions(runs: Path) -> None:
    checkpoint = runs / "old/0/checkpoints/checkpoint-4"
    for file in (runs / "old/0/run.json", checkpoint / "manifest.json"):
        assert "format_version" not in json.loads(file.read_text())


@pytest.mark.slow
def test_an_old_checkpoint_is_evaluated_and_exported(program: Program, runs: Path) -> None:
    evaluated = program("evaluate", *SETTINGS, f"checkpoint={runs / 'old/0'}", "name=e")
    assert (evaluated.returncode, evaluated.stderr) == (0, "")
    before = json.loads((runs / "old/0/evaluation.json").read_text())["policies"][-1]
    results = json.loads((runs / "e/0/evaluation.json").read_text())["policies"]
    played = next(each for each in results if each["policy"] == "checkpoint-4")
    assert before["policy"] == "after" and played["n"] == before["n"] == 12
    assert (played["reward"], played["win_rate"]) == (before["reward"], before["win_rate"])
    exported = program("export", "old", "--to", "model")
    assert exported.returncode == 0, exported.stderr
    weights = load_file(runs.parent / "model/model.safetensors")
    trained = load_file(runs / "old/0/checkpoints/checkpoint-4/model.safetensors")
    assert all((weights[name] == trained[name]).all() for name in weights)
    assert "step 4" in (runs.parent / "model/README.md").read_text()


def test_other_settings_are_refused_before_the_launch(program: Program, runs: Path) -> None:
    refused = program(
        *("train", *SETTINGS, "name=old", "resume=true", "env.hints=false", "logger=tensorboard")
    )
    assert refused.returncode == 1 and "Plan" not in refused.stdout
    assert refused.stderr.startswith("env.hints is not what it was when ")


def test_old_runs_are_listed_and_known_to_be_done(program: Program, runs: Path) -> None:
    listed = program("runs")
    assert listed.returncode == 0, listed.stderr
    rows = {line.split()[0]: line for line in listed.stdout.splitlines() if line.split()}
    assert "1 done" in rows["old"] and "1 done" in rows["lora"]
    resumed = program("resume", "old")
    assert resumed.returncode == 0, resumed.stderr
    assert "Every job of this run is done." in resumed.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", ["old", "lora"])
def test_an_old_run_is_trained_further(program: Program, runs: Path, name: str) -> None:
    lora = ["model.lora.enabled=true"] if name == "lora" else []
    done = program(
        *("train", *SETTINGS, *lora, f"name={name}", "resume=true", "trainer.max_steps=6")
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "Going on from step 4" in done.stdout
    assert steps(runs / name / "0") == [2, 4, 6]
    assert [path.name for path in (runs / name / "0/checkpoints").iterdir()] == ["checkpoint-6"]
    if name == "lora":  # its base has been made anew; the old adapter fits it
        exported = program("export", "lora", "--to", "model")
        assert exported.returncode == 0, exported.stderr
