"""Which faults between engine and policy stop a run, and at which weight sync; no false alarms.

python -m benchmarks.resilience.sync_faults MODEL [--dtype bfloat16] [--cases NAME,...]
       [--clean-steps 200] [--syncs 12] [--episodes 32] [--out TABLE.md]

MODEL is a size of `benchmarks.models` or the folder of a model. Every case trains in this process,
with LoRA and with all weights, on one engine of vLLM. The comparison of the tensors, which detects
most of the faults by itself, is also switched off ("blind"), so that log-probabilities must do it.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from hydra import compose, initialize_config_dir
from transformers import TrainerCallback

from benchmarks import _results as results
from benchmarks.models import SIZES, model_folder
from environments import End, Environment, Step
from rl_experiments.checkpoints.checkpointer import Checkpointer
from rl_experiments.config.experiment import Experiment
from rl_experiments.config.registration import register
from rl_experiments.errors import UserError
from rl_experiments.inference import weight_sync
from rl_experiments.models.loading import load_model
from rl_experiments.models.policy import Policy, load_policy
from rl_experiments.models.tiny import best_device
from rl_experiments.paths import CONF_DIR
from rl_experiments.preflight import check
from rl_experiments.run.recorder import RunRecorder
from rl_experiments.tracking.base import LoggedRun
from rl_experiments.tracking.loggers import Loggers
from rl_experiments.training.build import build_trainer
from rl_experiments.training.grpo_config import make_grpo_config

_TOPICS = ("the sea", "a small town", "winter", "a long journey", "bread", "music", "the moon")
_LAST_GOOD_SYNC = 3  # of the faults that begin in the middle of a run
_TEMPERATURE = 0.8  # not 1, so that a fault of the temperature or of its mode shows
# Which check stopped a run, by its message.
_CHECKS = {
    "tensors": "weights are not the policy's after a sync",
    "level": r"engine is not the policy.*differ by",
    "tracking": r"engine is not the policy.*change since",
    "generation": "sampler and the trainer disagree",
}


@dataclass
class CountLetters(Environment):
    """Rewards the share of the letter e in a text: rewards vary, whatever the model is."""

    def reset(self, seed: int, *, member: int = 0) -> str:
        return f"Write a sentence about {_TOPICS[seed % len(_TOPICS)]}, number {seed % 1000}."

    def step(self, reply: str) -> Step:
        return Step(reward=reply.count("e") / (len(reply) + 1), end=End.WON)


class Progress(TrainerCallback):  # type: ignore[misc]
    """Prints how far a long case has come."""

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % 25 == 0:
            print(f"  {state.global_step} syncs without an alarm", flush=True)


@dataclass
class Case:
    """A planted fault. `plant(engine, trainer)` returns a context for the whole training."""

    plant: Callable[[Any, Any], Any]
    with_tensors: bool = True  # whether the comparison of tensors could detect it
    kinds: tuple[str, ...] = ("lora", "full")


@contextmanager
def send(engine: Any, choose: Callable[[int, str], bool]) -> Iterator[None]:
    """Send only the weights that `choose(sync, name)` accepts; syncs count from 1."""
    syncs = 0

    def load(network: Any, model: Any) -> None:
        nonlocal syncs
        syncs += 1
        network.load_weights(
            (name, weight.detach())
            for name, weight in weight_sync.merged_weights(model)
            if choose(syncs, name)
        )

    with patch.object(weight_sync, "load_weights", load):
        yield


def stop_sending(pattern: str) -> Callable[[Any, Any], Any]:
    """Return a fault: after the last good sync, weights whose name matches are not sent."""

    def chosen(sync: int, name: str) -> bool:
        return sync <= _LAST_GOOD_SYNC or re.search(pattern, name) is None

    return lambda engine, trainer: send(engine, chosen)


def scaled_adapter(factor: float) -> Callable[[Any, Any], Any]:
    """Return a fault: adapters are merged with `factor` times their effect."""

    @contextmanager
    def plant(engine: Any, trainer: Any) -> Iterator[None]:
        with ExitStack() as stack:
            for module in trainer.model.modules():
                if hasattr(module, "get_delta_weight") and hasattr(module, "base_layer"):
                    right = module.get_delta_weight
                    stack.enter_context(
                        patch.object(
                            module,
                            "get_delta_weight",
                            lambda adapter, right=right: factor * right(adapter),
                        )
                    )
            yield

    return plant


@contextmanager
def other_rope(engine: Any, trainer: Any) -> Iterator[None]:
    """Give the engine four times the RoPE base."""
    (changed,) = engine.llm.apply_model(_change_rope)
    try:
        yield
    finally:
        for rope, cache in changed:
            rope.cos_sin_cache.copy_(cache)


def _change_rope(network: Any) -> list[tuple[Any, Any]]:
    changed = {}
    for module in network.modules():
        if hasattr(module, "cos_sin_cache") and id(module) not in changed:
            kept = module.cos_sin_cache.clone()
            base, module.base = module.base, module.base * 4
            module.cos_sin_cache.copy_(module._compute_cos_sin_cache().to(kept))
            module.base = base
            changed[id(module)] = (module, kept)
    return list(changed.values())


@contextmanager
def other_temperature(engine: Any, trainer: Any) -> Iterator[None]:
    """Let the engine sample at 1.25 times the temperature."""
    trainer.rollout.sampler._parameters.temperature *= 1.25
    yield


@contextmanager
def raw_logprobs(engine: Any, trainer: Any) -> Iterator[None]:
    """Let the engine report log-probabilities before the temperature."""
    runner = engine._core.model_executor.driver_worker.worker.model_runner
    with patch.object(runner.sampler, "logprobs_mode", "raw_logprobs"):
        yield


@contextmanager
def padded_vocabulary(engine: Any, trainer: Any) -> Iterator[None]:
    """Let the engine draw from 256 tokens that the policy lacks, with the logits of token 0."""

    def pad(network: Any) -> Any:
        right = network.compute_logits

        def padded(*args: Any, **kwargs: Any) -> Any:
            logits = right(*args, **kwargs)
            return torch.cat([logits, logits[..., :1].expand(*logits.shape[:-1], 256)], -1)

        network.compute_logits = padded
        return network

    (network,) = engine.llm.apply_model(pad)
    try:
        yield
    finally:
        del network.compute_logits


@contextmanager
def nothing(engine: Any, trainer: Any) -> Iterator[None]:
    """Plant no fault."""
    yield


CASES = {
    "none": Case(nothing),
    "all frozen": Case(stop_sending("")),
    "one layer not sent": Case(stop_sending(r"layers\.1\.")),
    "one projection not sent": Case(stop_sending(r"layers\.1\.mlp\.down_proj")),
    "embeddings stale": Case(stop_sending("embed_tokens"), kinds=("full",)),
    "adapter doubled": Case(scaled_adapter(2.0), with_tensors=False, kinds=("lora",)),
    "adapter not added": Case(scaled_adapter(0.0), with_tensors=False, kinds=("lora",)),
    "RoPE base x 4": Case(other_rope, with_tensors=False),
    "temperature x 1.25": Case(other_temperature, with_tensors=False),
    "raw log-probabilities": Case(raw_logprobs, with_tensors=False),
    "vocabulary padded": Case(padded_vocabulary, with_tensors=False),
}


class Bench:
    """One engine, and trainers on it one after the other."""

    def __init__(self, model: str, dtype: str, episodes: int) -> None:
        register()
        self.path = str(model_folder(model)) if model in SIZES else model
        self.dtype = dtype
        self.episodes = episodes
        self.folder = Path(tempfile.mkdtemp())
        self.policy: Policy | None = None
        self.environment = CountLetters()

    def experiment(self, kind: str, steps: int) -> Experiment:
        with initialize_config_dir(version_base=None, config_dir=str(CONF_DIR)):
            overrides = [
                *("name=fault", "model=qwen2_5_0_5b", f"model.path={self.path}", "sampler=vllm"),
                *(f"model.dtype={self.dtype}", f"model.lora.enabled={kind == 'lora'}".lower()),
                *("model.max_length=256", "trainer.max_completion_length=32", "logger=none"),
                f"trainer.learning_rate={2e-4 if kind == 'lora' else 1e-5}",
                f"trainer.num_generations={min(8, self.episodes)}",
                f"trainer.per_device_train_batch_size={self.episodes}",
                *("trainer.gradient_accumulation_steps=1", f"trainer.max_steps={steps}"),
                *("trainer.lr_scheduler_type=constant", f"trainer.temperature={_TEMPERATURE}"),
                *("checks.patience=10000", f"checkpoint.every_steps={steps}", "num_examples=1"),
                # A cache of its own size, so that several of these processes can share a GPU.
                *("vllm.enforce_eager=true", "vllm.gpu_memory_utilization=0.1"),
                "+vllm.extra.kv_cache_memory_bytes=2147483648",
            ]
            return dataclasses.replace(
                check(compose("config", overrides)), environment=self.environment
            )

    def trainer(self, kind: str, steps: int) -> Any:
        experiment = self.experiment(kind, steps)
        config = experiment.config
        if self.policy is None:
            self.policy = load_policy(config, self.environment, self.folder, trains=True)
        else:
            model = load_model(self.path, config, trains=True).to(best_device())
            self.policy = dataclasses.replace(self.policy, model=model)
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        loggers = Loggers(LoggedRun(folder, steps, config.logger, {}, print))
        run = RunRecorder(folder, loggers, Checkpointer(folder, config.checkpoint, print))
        made = build_trainer(experiment, run, self.policy, make_grpo_config(config, folder))
        made.args.save_strategy = "no"
        made.add_callback(Progress())
        return made

    def run(self, name: str, kind: str, *, syncs: int, blind: bool) -> dict[str, Any]:
        """Train with a fault for at most `syncs` weight syncs, and return a row of the table."""
        trainer = self.trainer(kind, steps=syncs)
        engine, message, stopped = trainer.rollout.sampler.engine, "", 0
        started = time.perf_counter()
        with ExitStack() as stack:
            if blind:
                stack.enter_context(patch.object(weight_sync, "differing_weights", lambda *_: []))
            try:
                stack.enter_context(CASES[name].plant(engine, trainer))
                trainer.train()
            except UserError as error:
                message, stopped = str(error), trainer.state.global_step + 1
        by = next((check for check, text in _CHECKS.items() if re.search(text, message)), message)
        logged = [entry for entry in trainer.state.log_history if "loss" in entry]
        row = {
            "case": name,
            "weights": kind,
            "tensors": "not compared" if blind else "compared",
            "stopped at sync": stopped or f"not in {len(logged)}",
            "by": by,
        }
        for column, key in (
            ("difference", "sampling/sync_logp_difference/mean"),
            ("rounding", "sampling/rounding_logp_difference/mean"),
            ("share", "sampling/sync_share"),
            ("generation", "sampling/sampling_logp_difference/mean"),
            ("clipped", "sampling/clipped_by_rounding"),
        ):
            values = [entry[key] for entry in logged if key in entry]
            row[column] = f"{sum(values) / len(values):.4f}" if values else ""
        print(f"{row} {time.perf_counter() - started:.1f} s {message}", flush=True)
        return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--cases", default="")
    parser.add_argument("--clean-steps", type=int, default=200)
    parser.add_argument("--syncs", type=int, default=12)
    parser.add_argument("--episodes", type=int, default=32, help="of each generation")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    bench, rows = Bench(args.model, args.dtype, args.episodes), []
    for name in args.cases.split(",") if args.cases else CASES:
        case = CASES[name]
        for kind in case.kinds:
            syncs = args.clean_steps if name == "none" else args.syncs
            choices = (False, True) if case.with_tensors and name != "none" else (False,)
            for blind in choices:
                rows.append(bench.run(name, kind, syncs=syncs, blind=blind))
                if args.out:
                    args.out.write_text(results.markdown_table(rows) + "\n")
    print(results.markdown_table(rows))


if __name__ == "__main__":
    main()
