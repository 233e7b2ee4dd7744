"""The model card of an exported checkpoint: what it is, how it was trained, how well it plays."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from hydra_modal_jobs import is_secret_name
from omegaconf import OmegaConf

from rl_experiments.config.environment import environment_class
from rl_experiments.config.schema import Config
from rl_experiments.errors import UserError
from rl_experiments.paths import (
    EVALUATION_FILE,
    EVALUATION_FOLDER,
    METRICS_FILE,
    RECORDS_FOLDER,
    RUN_FILE,
    policy_episodes_file,
)
from rl_experiments.storage.files import read_json_lines, read_json_object

HUB_NAME = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"  # regular expression of OWNER/NAME
_OTHER_CHECKPOINT = "export another checkpoint of the run"
_HUB_LICENSES = ("apache-2.0", "mit", "cc-by-nc-4.0")  # others go by `license_name` on the hub
_SHOWN_SETTINGS = (
    *("seed", "num_examples", "env", "model", "sampler", "trainer", "reward", "evaluation"),
)
_SHOWN_OF_MODEL = (
    *("name", "path", "scratch", "dtype", "attn_implementation", "max_length", "lora", "license"),
)
_DATA_SETTINGS = ("data", "evaluation_data", "words", "held_out")  # of environments with data
_SHOWN_METRICS = ("step", "reward", "win_rate", "eval/reward", "eval/win_rate")
_TEMPLATE = """\
---
{front_matter}---

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


def model_card(checkpoint: Path, step: int, cfg: Any, *, base: str | None, name: str) -> str:
    """Return the card of a checkpoint as Markdown with the metadata that the hub reads.

    `cfg` is the configuration of its run, `base` the model that its adapter was merged into, and
    `name` what `from_pretrained` takes to load the exported model.
    """
    # Interpolations are kept, because what they stand for may be secret.
    config: Any = OmegaConf.to_container(cfg)
    settings = _shown_settings(config)
    env = settings["env"]
    record = read_json_object(
        checkpoint / RECORDS_FOLDER / RUN_FILE, "python", "packages", remedy=_OTHER_CHECKPOINT
    )
    metrics = _last_metrics(checkpoint)
    data = ", ".join(
        f"{key} `{env[key]}`" for key in _DATA_SETTINGS if env.get(key) not in (None, "left out")
    )
    front_matter, origin = _origin(config, base)
    versions = {"python": record["python"], **record["packages"]}
    return _TEMPLATE.format(
        front_matter=OmegaConf.to_yaml(front_matter),
        origin=origin,
        run=config["name"],
        step=step,
        env=env["name"],
        name=name,
        tokens=config["trainer"]["max_completion_length"],
        target=env["_target_"],
        data=f"Tasks come from data: {data}." if data else "Tasks are made from seeds.",
        evaluation=_evaluation(checkpoint.resolve().parents[1], step),
        metrics=", ".join(f"{k} {metrics[k]:.4g}" for k in _SHOWN_METRICS if k in metrics)
        or "none",
        code=_code(record["git"] or {}),
        versions=", ".join(f"{key} {value}" for key, value in versions.items() if value),
        settings=OmegaConf.to_yaml(settings),
    )


def _last_metrics(checkpoint: Path) -> Mapping[str, Any]:
    """Return the metrics of the last step that learned from rewards."""
    records = list(read_json_lines(checkpoint / RECORDS_FOLDER / METRICS_FILE))
    last: Mapping[str, Any] = next((r for r in reversed(records) if "reward" in r), {})
    return last


def _code(git: Mapping[str, Any]) -> str:
    changes = " with changes" if git.get("dirty") else ""
    return f"commit {git.get('commit', 'unknown')}{changes}"


def _origin(config: Mapping[str, Any], base: str | None) -> tuple[dict[str, Any], str]:
    """Return the metadata for the hub, and in words what training began with."""
    model, trained_before = config["model"], config["checkpoint"]["path"]
    start = base or trained_before or model["path"] or ""
    metadata: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
    }
    if model["license"] in _HUB_LICENSES:
        metadata["license"] = model["license"]
    elif model["license"] != "none":
        metadata |= {"license": "other", "license_name": model["license"]}
    method = () if config["trainer"]["target"] else ("grpo", "trl")
    metadata["tags"] = ["reinforcement-learning", *method, config["env"]["name"]]
    if start != trained_before and re.fullmatch(HUB_NAME, start) and not Path(start).exists():
        metadata["base_model"] = start
        return metadata, f"[{start}](https://huggingface.co/{start})"
    if trained_before or not model["scratch"]:
        return metadata, f"`{Path(start).name}`, a folder"
    return metadata, "a model made at random, warmed up on random replies: the format, no skill"


def _evaluation(job_folder: Path, step: int) -> str:
    """Return the table of the run's evaluation, whose policy `after` is of its last step."""
    file = job_folder / EVALUATION_FILE
    if not file.exists():
        return "This checkpoint came without its run's evaluation."
    results = read_json_object(file, "policies", remedy="delete it, or restore it from a copy")
    episodes = job_folder / EVALUATION_FOLDER / policy_episodes_file("after")
    versions = [record["version"] for record in read_json_lines(episodes, "version")][:1]
    labels = {"before": "before (step 0)", "after": f"after ({', '.join(versions)})"}
    notes = ["This checkpoint has not been evaluated itself.", ""]
    if versions == [f"step {step}"]:
        labels["after"] = "**after: this model**"
        notes = []
    rows = [
        (labels.get(row["policy"], row["policy"]), row["n"], row) for row in results["policies"]
    ]
    if "after - before" in results:
        rows.append(("after - before", "paired", results["after - before"]))
    table = ["| policy | episodes | win rate | mean reward |", "|---|---|---|---|"]
    for label, n, row in rows:
        table.append(f"| {label} | {n} | {_cell(row['win_rate'])} | {_cell(row['reward'])} |")
    return "\n".join([*notes, *table, "", "95 % intervals; every policy plays the same seeds."])


def _cell(estimate: Mapping[str, float] | None) -> str:
    return "{value:.3f} ({low:.3f} to {high:.3f})".format(**estimate) if estimate else "-"


def _shown_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that the card lists: those that the schema names, in short.

    Strings of settings that it does not name may be anything, so they are left out.
    """
    schema = OmegaConf.to_container(OmegaConf.structured(Config))
    assert isinstance(schema, dict)
    shown = {key: _known(config[key], schema[key]) for key in _SHOWN_SETTINGS if key in config}
    shown["model"] = {key: item for key, item in shown["model"].items() if key in _SHOWN_OF_MODEL}
    env = config["env"]
    known = _fields_of_our_environments(env["_target_"])
    shown["env"] = {
        key: _short(item)
        if key in ("name", "_target_", "variant", *known)
        else _without_strings(item)
        for key, item in env.items()
        if not is_secret_name(str(key).upper())
    }
    return shown


def _known(value: Any, schema: Any) -> Any:
    """Return the part of a setting that the schema has; of a free one, what is no string."""
    if not isinstance(value, dict):
        return _short(value)
    if not schema:
        return _without_strings(value)
    return {key: _known(item, schema[key]) for key, item in value.items() if key in schema}


def _without_strings(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_strings(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_strings(item) for item in value]
    return "left out" if isinstance(value, str) and "${" not in value else value


def _short(value: Any) -> Any:
    """Return a setting without the folders of this machine."""
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_short(item) for item in value]
    is_plain = isinstance(value, str) and "${" not in value
    is_path = is_plain and (value.startswith(("/", "~", ".")) or "://" in value or "\\" in value)
    is_file = is_plain and "/" in value and (bool(Path(value).suffix) or Path(value).exists())
    return Path(value).name if is_path or (is_file and not _is_model_name(value)) else value


def _is_model_name(value: str) -> bool:
    return re.fullmatch(HUB_NAME, value) is not None and not Path(value).exists()


def _fields_of_our_environments(target: str) -> list[str]:
    """Return the settings of an environment of this project; none of one from elsewhere."""
    if not target.startswith("environments."):
        return []
    try:
        return [field.name for field in fields(environment_class(target))]
    except UserError:
        return []
