"""What an exported model computes, and how it replies."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from rl_experiments.checkpoints.manifest import finalize
from rl_experiments.commands.export import export
from rl_experiments.errors import UserError
from rl_experiments.inference.weight_sync import merged_weights
from tests.rl_experiments.export.exporting import (
    FILES,
    answers,
    change_settings,
    full_checkpoint,
)


def test_an_adapter_and_its_base_become_one_model(
    run: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = run / "checkpoints/checkpoint-4"
    base = Path(
        json.loads((checkpoint / "adapter_config.json").read_text())["base_model_name_or_path"]
    )
    logits, reply = answers(checkpoint)
    export(["lora", "--to", "models/one"])
    printed = capsys.readouterr().out
    assert re.fullmatch(
        rf"runs/lora/0/checkpoints/checkpoint-4 is in {tmp_path}/models/one \(0\.\d MB\)\n", printed
    )
    folder = tmp_path / "models/one"
    assert {path.name for path in folder.iterdir()} == FILES
    assert [path.name for path in folder.parent.iterdir()] == ["one"]
    before, _ = answers(base)
    hidden = base.rename(base.with_name("hidden"))
    try:
        after, again = answers(folder)
    finally:
        hidden.rename(base)
    assert torch.allclose(after, logits, atol=1e-4) and again == reply
    assert (after - before).abs().max() > 0.1
    # No file holds a path of this machine.
    for path in folder.iterdir():
        assert not re.search(rb"/tmp|scratch/|/0/", path.read_bytes()), path


def test_all_weights_are_exported_as_they_are(run: Path, tmp_path: Path) -> None:
    checkpoint = full_checkpoint(run)
    export([str(checkpoint), f"--to={tmp_path / 'out'}"])
    assert (answers(tmp_path / "out")[0] == answers(checkpoint)[0]).all()
    assert json.loads((tmp_path / "out/config.json").read_text())["use_cache"] is True


def test_bf16_weights_are_rounded_once(run: Path, tmp_path: Path) -> None:
    checkpoint = change_settings(run / "checkpoints/checkpoint-4", model__dtype="bfloat16")
    # As in training: a base in bf16, an adapter in fp32; vLLM plays the sum.
    adapter = json.loads((checkpoint / "adapter_config.json").read_text())
    base = AutoModelForCausalLM.from_pretrained(
        adapter["base_model_name_or_path"], dtype="bfloat16"
    )
    wanted = dict(merged_weights(PeftModel.from_pretrained(base, checkpoint)))
    export(["lora", "--to", "out"])
    weights = load_file("out/model.safetensors")
    assert weights and all(torch.equal(weights[name], wanted[name]) for name in weights)
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}


def test_the_model_replies_as_it_was_evaluated(run: Path) -> None:
    checkpoint = change_settings(full_checkpoint(run), trainer__temperature=0.7)
    settings = json.loads((checkpoint / "generation_config.json").read_text())
    settings |= {"do_sample": True, "top_k": 3, "repetition_penalty": 9.0}
    (checkpoint / "generation_config.json").write_text(json.dumps(settings))
    finalize(checkpoint.parent, step=4)
    export([str(checkpoint), "--to", "out"])
    exported = json.loads(Path("out/generation_config.json").read_text())
    kept = {key: exported[key] for key in ("temperature", "top_k", "top_p", "do_sample")}
    assert kept == {"temperature": 0.7, "top_k": 0, "top_p": 1.0, "do_sample": True}
    assert (
        "repetition_penalty" not in exported
        and exported["eos_token_id"] == settings["eos_token_id"]
    )


def test_a_base_that_is_gone_is_named(run: Path) -> None:
    file = run / "checkpoints/checkpoint-4/adapter_config.json"
    adapter = json.loads(file.read_text()) | {"base_model_name_or_path": "/nowhere/base"}
    file.write_text(json.dumps(adapter))
    finalize(run / "checkpoints", step=4)
    with pytest.raises(UserError, match=r"^lora: its base /nowhere/base is not on this machine"):
        export(["lora", "--to", "out"])
