"""Helpers of the export tests: a run to export, and what an exported model does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM, AutoTokenizer

from rl_experiments.checkpoints.manifest import finalize
from tests.support.program import SMALL

LORA = [
    *SMALL,
    "num_examples=4",
    "model.scratch.warmup_steps=5",
    "trainer.learning_rate=0.05",
    "model.lora.enabled=true",
]
# The files of an exported model.
FILES = {
    *("config.json", "generation_config.json", "model.safetensors", "README.md"),
    *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
}
PROMPT = [{"role": "system", "content": "win"}, {"role": "user", "content": "2 4\n. .\n"}]


def change_settings(checkpoint: Path, **changes: Any) -> Path:
    """Give the run of a checkpoint other settings (`a__b` for a.b), and write its manifest anew."""
    file = checkpoint / "run/config.yaml"
    cfg = OmegaConf.load(file)
    for name, value in changes.items():
        OmegaConf.update(cfg, name.replace("__", "."), value)
    OmegaConf.save(cfg, file)
    return finalize(checkpoint.parent, step=int(checkpoint.name.rpartition("-")[2]))


def full_checkpoint(run: Path) -> Path:
    """Make a checkpoint as of a run that trained all weights, and return its folder."""
    base = json.loads((run / "checkpoints/checkpoint-4/adapter_config.json").read_text())
    folder = run.parents[1] / "whole/0/checkpoints/checkpoint-4"
    model = AutoModelForCausalLM.from_pretrained(base["base_model_name_or_path"])
    model.config.use_cache = False  # as training may leave it
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(run / "checkpoints/checkpoint-4").save_pretrained(folder)
    shutil.copytree(run / "checkpoints/checkpoint-4/run", folder / "run")
    return change_settings(folder, model__lora__enabled=False)


def answers(folder: Path, **options: Any) -> tuple[torch.Tensor, list[int]]:
    """Return the logits after a prompt, and the token ids of the greedy reply to it."""
    model = AutoModelForCausalLM.from_pretrained(folder, **options)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = tokenizer.apply_chat_template(PROMPT, add_generation_prompt=True, return_tensors="pt")
    with torch.no_grad():
        reply = model.generate(**chat, do_sample=False, max_new_tokens=16)
        return model(**chat).logits, reply[0].tolist()


def read_card(folder: Path) -> tuple[dict[str, Any], str]:
    """Return the metadata and the text of an exported model's card."""
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), text
