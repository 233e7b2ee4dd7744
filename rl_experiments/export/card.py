"""The card of a model: what it is, how it was trained, and how well it plays."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from rl_experiments.paths import (
    EVALUATION_FILE,
    EVALUATION_FOLDER,
    METRICS_FILE,
    RECORDS_FOLDER,
    RUN_FILE,
    policy_episodes_file,
)
from rl_experiments.storage.files import read_json_lines

HUB_NAME = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
_LICENSES = ("apache-2.0", "mit", "cc-by-nc-4.0")  # that the hub has names for
_TOLD = ("seed", "num_examples", "env", "model", "sampler", "trainer", "reward", "evaluation")
_DATA = ("data", "evaluation_data", "words", "held_out")  # settings of environments with data
_METRICS = ("step", "reward", "win_rate", "eval/reward", "eval/win_rate")
_SECRET = re.compile(r"(key|token|secret|password|credentials)$", re.IGNORECASE)
_CARD = """\
---
{front}---

# {run}, step {step}

A language model trained by reinforcement learning on the environment `{env}`. It began as {origin}.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer, model = (c.from_pretrained("{name}") for c in (AutoTokenizer, AutoModelForCausalLM))
chat = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_tensors="pt")
print(tokenizer.decode(model.generate(**chat, max_new_tokens={tokens})[0]))
```

`MESSAGES` are the environment's: its system prompt, then what it shows. Replies are drawn as they
were when it was evaluated.

## Environment

`{target}`. {data} Training seeds are even, evaluation seeds odd.

## Evaluation

{evaluation}

## Training

Last metrics: {metrics}. Code: {code}. Versions: {versions}.

```yaml
{settings}```
"""


def card(source: Path, step: int, cfg: Any, *, base: str | None, name: str) -> str:
    config: Any = OmegaConf.to_container(cfg)  # interpolations kept: they may stand for secrets
    told = {key: _public(config[key]) for key in _TOLD if key in config}
    env, run = told["env"], json.loads((source / RECORDS_FOLDER / RUN_FILE).read_text())
    lines = list(read_json_lines(source / RECORDS_FOLDER / METRICS_FILE))
    last: Any = next((r for r in reversed(lines) if "reward" in r), {})
    git, versions = run["git"] or {}, {"python": run["python"], **run["packages"]}
    data = ", ".join(f"{key} `{env[key]}`" for key in _DATA if env.get(key) is not None)
    front, origin = _begun(config, base)
    return _CARD.format(
        front=OmegaConf.to_yaml(front),
        origin=origin,
        run=config["name"],
        step=step,
        env=env["name"],
        name=name,
        tokens=config["trainer"]["max_completion_length"],
        target=env["_target_"],
        data=f"Tasks come from data: {data}." if data else "Tasks are made from seeds.",
        evaluation=_evaluation(source.resolve().parents[1], step),
        metrics=", ".join(f"{key} {last[key]:.4g}" for key in _METRICS if key in last) or "none",
        code=f"commit {git.get('commit', 'unknown')}{' with changes' * bool(git.get('dirty'))}",
        versions=", ".join(f"{key} {value}" for key, value in versions.items() if value),
        settings=OmegaConf.to_yaml(told),
    )


def _begun(config: Mapping[str, Any], base: str | None) -> tuple[dict[str, Any], str]:
    """The metadata that the hub reads, and what training began with."""
    model, before = config["model"], config["checkpoint"]["path"]
    start = base or before or model["path"] or ""
    front: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if model["license"] in _LICENSES:
        front["license"] = model["license"]
    elif model["license"] != "none":
        front |= {"license": "other", "license_name": model["license"]}
    how = () if config["trainer"]["target"] else ("grpo", "trl")
    front["tags"] = ["reinforcement-learning", *how, config["env"]["name"]]
    if start != before and re.fullmatch(HUB_NAME, start) and not Path(start).exists():
        front["base_model"] = start
        return front, f"[{start}](https://huggingface.co/{start})"
    if before or not model["scratch"]:
        return front, f"`{Path(start).name}`, a folder"
    return front, "a model made at random, warmed up on random replies: the format, no skill"


def _evaluation(job: Path, step: int) -> str:
    """The table of the run, whose `after` is of its last step."""
    file = job / EVALUATION_FILE
    if not file.exists():
        return "This checkpoint came without its run's evaluation."
    told, note = (
        json.loads(file.read_text()),
        ["This checkpoint has not been evaluated itself.", ""],
    )
    episodes = job / EVALUATION_FOLDER / policy_episodes_file("after")
    played = [record["version"] for record in read_json_lines(episodes)][:1]
    lines = {"before": "before (step 0)", "after": f"after ({', '.join(played)})"}
    if played == [f"step {step}"]:
        note, lines["after"] = [], "**after: this model**"
    rows = [(lines.get(row["policy"], row["policy"]), row["n"], row) for row in told["policies"]]
    if "after - before" in told:
        rows.append(("after - before", "paired", told["after - before"]))
    table = ["| policy | episodes | win rate | mean reward |", "|---|---|---|---|"]
    for name, n, row in rows:
        table.append(f"| {name} | {n} | {_cell(row['win_rate'])} | {_cell(row['reward'])} |")
    return "\n".join([*note, *table, "", "95 % intervals; every policy plays the same seeds."])


def _cell(estimate: Mapping[str, float] | None) -> str:
    return "{value:.3f} ({low:.3f} to {high:.3f})".format(**estimate) if estimate else "-"


def _public(value: Any, name: str = "") -> Any:
    """A setting without secrets, and without the folders of this machine."""
    if isinstance(value, dict):
        return {key: _public(below, str(key)) for key, below in value.items()}
    if isinstance(value, list):
        return [_public(below, name) for below in value]
    if isinstance(value, str) and "${" not in value:  # which is not resolved
        if _SECRET.search(name):
            return "left out"
        return Path(value).name if Path(value).is_absolute() else value
    return value
