"""A resumed run has the weights that it had, of the policy and of what the KL term compares it to.

Runs are resumed bit for bit, and a second stage begins at no distance from its reference.
"""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rl_experiments.errors import UserError
from rl_experiments.paths import REFERENCE_MODEL_FILE
from rl_experiments.training.resume import load_weights, plain_data_only
from rl_experiments.training.trainer import EpisodeTrainer
from tests.support.tiny_models import tiny_model
from tests.support.trainers import small_trainer

_LORA = ["model.lora.enabled=true", "trainer.learning_rate=1e-2"]
_WITH_REFERENCE = ["trainer.beta=0.1", "trainer.max_steps=4"]


@pytest.fixture(scope="module")
def first_stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run that trained an adapter for two steps."""
    folder = tmp_path_factory.mktemp("first-stage")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
        small_trainer(folder, *_LORA, "trainer.max_steps=2").train()
    return folder


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """Return all tensors of the checkpoint, by file and name."""
    checkpoint = folder / f"checkpoints/checkpoint-{step}"
    return {
        f"{file.relative_to(checkpoint)}/{name}": tensor
        for file in checkpoint.rglob("*.safetensors")
        for name, tensor in load_file(file).items()
    }


def assert_resumes_exactly(folder: Path, *overrides: str) -> EpisodeTrainer:
    """Train four steps at once and in two halves; the weights must be equal bit for bit."""
    straight = small_trainer(folder / "straight", *overrides)
    straight.train()
    halves = folder / "halves"
    shutil.copytree(
        folder / "straight/checkpoints/checkpoint-2", halves / "checkpoints/checkpoint-2"
    )
    resumed = small_trainer(halves, *overrides)
    resumed.train(resume_from_checkpoint=str(halves / "checkpoints/checkpoint-2"))
    first, second = weights(folder / "straight", 4), weights(halves, 4)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    before = weights(folder / "straight", 2)
    assert any(not torch.equal(first[name], before[name]) for name in first)
    return resumed


@pytest.mark.slow
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_an_adapter_that_is_trained_further_resumes_exactly(
    first_stage: Path, tmp_path: Path, beta: float
) -> None:
    trainer = assert_resumes_exactly(
        tmp_path,
        *_LORA,
        f"checkpoint.path={first_stage}",
        f"trainer.beta={beta}",
        "trainer.max_steps=4",
    )
    if beta:  # the reference is still the adapter of the first stage
        start = load_file(first_stage / "checkpoints/checkpoint-2/adapter_model.safetensors")
        state = trainer.model.state_dict()
        for name, tensor in start.items():
            assert torch.equal(state[name.replace(".weight", ".ref.weight")], tensor)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [True, False])
def test_a_run_with_a_fixed_reference_resumes_exactly(tmp_path: Path, lora: bool) -> None:
    assert_resumes_exactly(tmp_path, *_WITH_REFERENCE, *(_LORA if lora else ()))


@pytest.mark.slow
def test_a_moving_reference_model_is_part_of_the_checkpoint(tmp_path: Path) -> None:
    moving = ["+trainer.extra.sync_ref_model=true", "+trainer.extra.ref_model_sync_steps=1"]
    assert_resumes_exactly(tmp_path, *_WITH_REFERENCE, *moving)
    first, second = (
        load_file(tmp_path / f"straight/checkpoints/checkpoint-{step}" / REFERENCE_MODEL_FILE)
        for step in (2, 4)
    )
    assert any(not torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
@pytest.mark.parametrize("lora", ["true", "false"])
def test_the_reference_of_a_second_stage_is_the_policy_it_begins_from(
    first_stage: Path, tmp_path: Path, lora: str
) -> None:
    one_step_a_generation = [
        "trainer.per_device_train_batch_size=8",
        "trainer.steps_per_generation=1",
        "trainer.max_steps=2",
    ]
    trainer = small_trainer(
        tmp_path,
        f"checkpoint.path={first_stage}",
        f"model.lora.enabled={lora}",
        "trainer.learning_rate=1e-2",
        "trainer.beta=0.1",
        *one_step_a_generation,
    )
    trainer.train()
    divergences = [entry["kl"] for entry in trainer.state.log_history if "kl" in entry]
    assert divergences[0] == pytest.approx(0, abs=1e-6) and divergences[1] > 1e-5


@pytest.mark.parametrize("architecture", ["qwen2", "gemma3-window", "qwen3-moe", "mixtral", "lfm2"])
def test_a_model_has_all_weights_of_its_checkpoint(architecture: str, tmp_path: Path) -> None:
    model = tiny_model(architecture)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight))
    model.save_pretrained(tmp_path)
    resumed = tiny_model(architecture)
    load_weights(resumed, tmp_path)
    expected = model.state_dict()
    assert all(torch.equal(tensor, expected[n]) for n, tensor in resumed.state_dict().items())


def test_a_checkpoint_without_some_weights_is_refused(tmp_path: Path) -> None:
    model = tiny_model("qwen2")
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"not those of this model \(model\.layers\.1\.mlp\.up"):
        load_weights(model, tmp_path)


@pytest.mark.parametrize("content", [pickle.dumps(print, protocol=2), b""])
def test_a_state_file_that_is_no_plain_data_is_refused_in_one_line(
    tmp_path: Path, content: bytes
) -> None:
    file = tmp_path / "optimizer.pt"
    file.write_bytes(content)
    with pytest.raises(UserError) as refused, plain_data_only(tmp_path):
        torch.load(file, weights_only=True)
    assert "\n" not in str(refused.value)
