"""GRPO steps of this project and of TRL alone, on 2048 by tool calls: same model, same batch.

python -m benchmarks.throughput.trl_alone SIZE EPISODES [--moves 40] [--steps 4] [OVERRIDES...]

SIZE is 0.5b, 3b, or small (on a CPU, without vLLM). EPISODES is the number a step, 18 or 64.
--moves limits a game. OVERRIDES are for the project's side. Fails if the project's steps are not
twice as fast.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from benchmarks import _results as results
from benchmarks.environments import ToolGame2048, TrlGame
from benchmarks.models import SIZES, model_folder
from environments import training_seed
from environments.game2048.env import Rules
from rl_experiments.config.schema import ModelConfig
from rl_experiments.models.loading import lora_config

MAX_EPISODE_TOKENS = 8192
MAX_REPLY_TOKENS = 32  # for the project's side; TRL limits the whole conversation instead
# Each side decides for itself whether to recompute activations; TRL always does.
MIN_SPEEDUP = 2.0
# By episodes a step: the size of a group, and the episodes of a forward and backward pass.
BATCHES = {18: (18, 2), 64: (8, 4), 4: (2, 2)}


class TimedTrainer(GRPOTrainer):  # type: ignore[misc]
    """TRL's trainer, which also records the seconds, tokens and turns of each step."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.figures: list[dict[str, float]] = []
        self.sync_seconds = 0.0
        if self.use_vllm:
            self._sync = self.vllm_generation.sync_weights
            self.vllm_generation.sync_weights = self._timed_sync

    def _timed_sync(self) -> None:
        started = time.perf_counter()
        self._sync()
        self.sync_seconds += time.perf_counter() - started

    def _generate(self, prompts: list[Any]) -> Any:
        self.sync_seconds, started = 0.0, time.perf_counter()
        generated = super()._generate(prompts)
        seconds = time.perf_counter() - started - self.sync_seconds
        _, _, mask, completions, *_ = generated
        turns = [sum(m["role"] == "assistant" for m in messages) for messages in completions]
        tokens = sum(map(sum, mask))
        self.figures.append({"rollout s": seconds, "tokens": float(tokens), "turns": fmean(turns)})
        return generated

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "step_time" in self._metrics["train"]:
            self.figures[-1]["step s"] = fmean(self._metrics["train"]["step_time"])
        super().log(logs, start_time)


def trl(size: str, episodes: int, *, moves: int, steps: int) -> list[dict[str, float]]:
    """Train with TRL alone and return the figures of each step."""
    game = ToolGame2048(rules=Rules.art, max_moves=moves)
    group, rows = BATCHES[episodes]
    on_gpu = torch.cuda.is_available()
    # The same seeds as in the project's run.
    seeds = [training_seed(0, index) for index in range(episodes // group * steps)]
    prompt = [
        {"role": "system", "content": game.system_prompt},
        {"role": "user", "content": ""},  # the board comes from `reset`
    ]
    members = itertools.count()
    with tempfile.TemporaryDirectory() as folder:
        arguments = GRPOConfig(
            output_dir=folder,
            model_init_kwargs={"dtype": "bfloat16" if on_gpu else "float32"},
            use_cpu=not on_gpu,
            bf16=on_gpu,
            gradient_checkpointing=on_gpu,
            use_vllm=on_gpu,
            vllm_mode="colocate",
            vllm_gpu_memory_utilization=0.3,
            vllm_max_model_length=MAX_EPISODE_TOKENS,
            # For the conversation after the first prompt, which has about 250 tokens.
            max_completion_length=MAX_EPISODE_TOKENS - 512 if on_gpu else 1024,
            max_tool_calling_iterations=moves,
            num_generations=group,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=episodes // rows,
            steps_per_generation=episodes // rows,
            max_steps=steps,
            learning_rate=1e-5,
            beta=0.0,
            max_grad_norm=0.1,
            lr_scheduler_type="constant",
            shuffle_dataset=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = TimedTrainer(
            model=str(model_folder(size)),
            args=arguments,
            train_dataset=Dataset.from_dict({"prompt": [prompt] * len(seeds), "seed": seeds}),
            peft_config=lora_config(ModelConfig(name=size)),
            environment_factory=lambda: TrlGame(game, member=next(members)),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return trainer.figures


def project(
    size: str, episodes: int, *, moves: int, steps: int, overrides: Sequence[str]
) -> list[dict[str, float]]:
    """Train with this project and return the same figures of each step."""
    group, rows = BATCHES[episodes]
    run = results.train(
        f"beside-trl-{size}-{episodes}",
        [
            *results.model_overrides(size),
            *results.ART_RULES,
            "env._target_=benchmarks.environments.ToolGame2048",
            f"env.max_moves={moves}",
            f"model.max_length={MAX_EPISODE_TOKENS}",
            f"trainer.max_completion_length={MAX_REPLY_TOKENS}",
            f"trainer.num_generations={group}",
            f"trainer.per_device_train_batch_size={rows}",
            f"trainer.gradient_accumulation_steps={episodes // rows}",
            f"trainer.steps_per_generation={episodes // rows}",
            f"trainer.max_steps={steps}",
            f"checkpoint.every_steps={steps}",
            "trainer.learning_rate=1e-5",
            "num_examples=1",
            *overrides,
        ],
    )
    return [
        {
            "rollout s": line["time/rollout"],
            "tokens": line["rollout/tokens"],
            "turns": line["turns"],
            "step s": line["time/step"],
        }
        for line in results.metrics(run)
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("episodes", type=int, choices=BATCHES)
    parser.add_argument("--moves", type=int, default=40)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_intermixed_args()
    bounds = {"moves": arguments.moves, "steps": arguments.steps}
    figures_by_side = {
        "this project": project(
            arguments.size, arguments.episodes, **bounds, overrides=arguments.overrides
        ),
        "TRL alone": trl(arguments.size, arguments.episodes, **bounds),
    }
    print(f"2048 by tool calls, at most {arguments.moves} moves; the first step by itself")
    rows = [
        row
        for name, figures in figures_by_side.items()
        for row in (_row(f"{name}, first step", figures[:1]), _row(name, figures[1:]))
    ]
    print(results.markdown_table(rows))
    speedup = rows[3]["step s"] / rows[1]["step s"]
    print(
        f"{arguments.size}, {arguments.episodes} episodes: "
        f"a step is {speedup:.2f} times as fast as TRL's"
    )
    sys.exit(speedup < MIN_SPEEDUP)


def _row(name: str, figures: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Return a row of the table: the means of the figures over steps."""
    row: dict[str, Any] = {"": name}
    for key in ("step s", "rollout s", "turns", "tokens"):
        row[key] = fmean(step[key] for step in figures)
    return {**row, "rollout tokens/s": row["tokens"] / row["rollout s"]}


if __name__ == "__main__":
    main()
