"""The card of an exported model: it states what the run knows, and no secrets."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from rl_experiments.commands.export import export
from tests.rl_experiments.export.exporting import (
    PROMPT,
    change_settings,
    full_checkpoint,
    read_card,
)


def test_the_card_states_what_the_run_knows(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    export(["lora", "--to", "out"])
    front, text = read_card(Path("out"))
    tags = ["reinforcement-learning", "grpo", "trl", "game2048"]
    assert front == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": tags,
    }
    assert "# lora, step 4\n" in text and "a model made at random" in text
    evaluation = json.loads((run / "evaluation.json").read_text())
    for row in evaluation["policies"]:
        name = {"after": "**after: this model**", "before": "before (step 0)"}.get(row["policy"])
        cells = [
            f"{row[k]['value']:.3f} ({row[k]['low']:.3f} to {row[k]['high']:.3f})"
            for k in ("win_rate", "reward")
        ]
        assert f"| {name or row['policy']} | 4 | {cells[0]} | {cells[1]} |\n" in text
    assert "| after - before | paired |" in text
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert f"step 4, reward {last['reward']:.4g}, win_rate {last['win_rate']:.4g}." in text
    record = json.loads((run / "run.json").read_text())
    assert (record["git"] or {"commit": "unknown"})["commit"] in text
    assert f"trl {record['packages']['trl']}" in text
    settings = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    whole_config = yaml.safe_load((run / "config.yaml").read_text())
    for group in ("trainer", "env", "reward", "seed"):
        assert settings[group] == whole_config[group]
    # Its four lines of Python work where the card lies.
    monkeypatch.chdir("out")
    code = text.split("```python\n")[1].split("```")[0]
    exec(code, {"MESSAGES": PROMPT})
    assert "assistant" in capfd.readouterr().out


def test_an_evaluation_of_another_step_is_labelled_with_its_step(run: Path) -> None:
    export(["runs/lora/0/checkpoints/checkpoint-2", "--to", "out"])
    _, text = read_card(Path("out"))
    assert "This checkpoint has not been evaluated itself." in text
    assert "| after (step 4) | 4 |" in text and "this model" not in text
    assert "# lora, step 2\n" in text and "Last metrics: step 2, " in text


def test_the_card_names_the_base_and_no_secrets(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "a-value-of-it")
    extra = {"hub_token": "hf_abc", "note": "${oc.env:SOME_TOKEN}", "other": "a-value-of-it"}
    checkpoint = change_settings(
        full_checkpoint(run),
        model__path="Qwen/Qwen2.5-3B-Instruct",
        model__scratch=None,
        model__license="qwen-research",
        trainer__extra=extra,
        env___target_="environments.wordle.Wordle",
        env__words="/home/me/words.txt",
        env__address="https://me:pass-word@host/",
    )
    export([str(checkpoint), "--to", "out"])
    front, text = read_card(Path("out"))
    assert front["base_model"] == "Qwen/Qwen2.5-3B-Instruct"
    assert (front["license"], front["license_name"]) == ("other", "qwen-research")
    assert "hub_token: left out" in text and "note: ${oc.env:SOME_TOKEN}" in text
    assert "other: left out" in text and "address: left out" in text
    assert "words: words.txt" in text and "Tasks come from data: words `words.txt`." in text
    secrets = "hf_abc|a-value-of|pass-word|/home/me"
    assert not re.search(f"{secrets}|(?m:^ *checkpoint:|^ *budget:)", text)
    assert "came without its run's evaluation" in text
