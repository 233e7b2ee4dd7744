"""Rollout speed on a GPU: this project, TRL's lock-step, and the engine alone on the same turns.

python -m benchmarks.rollouts SIZE [--episodes 18,64] [--moves 40] [--out FILE] [OVERRIDES...]

SIZE: 0.5b, 3b or small; moves: the most of a game of 2048; out: takes a JSON line a row. One engine
plays it all; each way is measured three times, without the weight sync, and the best counts. Fails
if the project is below 0.9 of the engine alone.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from trl.generation.vllm_generation import VLLMGeneration

from benchmarks import runs
from benchmarks.environments import WordGame
from benchmarks.models import SIZES
from environments import Environment, training_seed
from environments.game2048 import Game2048
from environments.game2048.env import Rules
from rl_experiments.config.schema import CONF_DIR, register
from rl_experiments.inference.vllm_colocated import VllmEngine, import_vllm
from rl_experiments.models.policy import load_policy
from rl_experiments.preflight import check
from rl_experiments.rollout.episodes import Episode, EpisodeSpec, RolloutRunner, Trajectory

REPEATS = 3
GROUP = 6  # episodes that begin alike
GOAL = 0.9


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("--episodes", default="18,64")
    parser.add_argument("--moves", type=int, default=40)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--profile", action="store_true", help="the project's own play")
    parser.add_argument("overrides", nargs="*")
    told = parser.parse_intermixed_args()
    register()
    settings = [
        *(*runs.model(told.size), "name=benchmark", "sampler=vllm", "model.max_length=8192"),
        *("vllm.sleep=false", "vllm.gpu_memory_utilization=0.5"),  # a cache for all histories
    ]
    with initialize_config_dir(version_base=None, config_dir=str(CONF_DIR)):
        experiment = check(compose("config", [*settings, *told.overrides]))
    config = experiment.config
    game = Game2048(rules=Rules.art, max_moves=told.moves)
    # With the most tokens of a reply.
    tasks: list[tuple[str, Environment, int]] = [
        ("2048, last 4 turns", replace(game, earlier_turns=4), 16),
        ("2048, full history", game, 16),
        ("word game", WordGame(), 320),
    ]
    policy = load_policy(config, experiment.environment)
    engine = policy.engine
    assert isinstance(engine, VllmEngine)
    rows = []
    for name, environment, reply_tokens in tasks:
        config.trainer.max_completion_length = reply_tokens
        rollout = policy.rollout(config, environment, temperature=1.0)
        for episodes in map(int, told.episodes.split(",")):
            row = {"model": told.size, "task": name, **compare(rollout, engine, episodes)}
            rows.append(row)
            print(json.dumps(row), flush=True)
            if told.out:
                with told.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
            if told.profile:
                profile = cProfile.Profile()
                profile.runcall(rollout.play, tasks_of(episodes))
                pstats.Stats(profile).sort_stats("tottime").print_stats(25)
    print(f"tokens/s; games of 2048 end after {told.moves} moves; lock-step is TRL's own generate")
    print(runs.table(rows))
    sys.exit(min(row["of the engine"] for row in rows) < GOAL)


def tasks_of(episodes: int) -> list[EpisodeSpec]:
    return [EpisodeSpec(training_seed(0, i // GROUP), i % GROUP) for i in range(episodes)]


def compare(rollout: RolloutRunner, engine: VllmEngine, episodes: int) -> dict[str, Any]:
    """Measure each way of playing so many episodes."""
    tasks = tasks_of(episodes)
    played: list[Trajectory] = rollout.play(tasks)  # warm: graphs, caches of the machine

    def ours() -> tuple[int, float]:
        played[:] = rollout.play(tasks)
        return rollout.tokens, rollout.seconds

    generation = Generation(engine.llm, most_tokens=rollout.max_new_tokens)
    speeds = {
        "this project": best(engine, ours),
        "lock-step": best(engine, timed(lambda: lock_step(rollout, generation, tasks))),
        "engine alone": best(engine, timed(lambda: replay(engine, played))),
    }
    replies = sorted(len(turn.reply_ids) for episode in played for turn in episode.turns)
    tail = len(replies) // 20
    share = rollout.environment_seconds / rollout.seconds
    return {
        "episodes": episodes,
        "turns": len(replies),
        "tokens a reply (5 %, 95 %)": f"{replies[tail]}, {replies[-1 - tail]}",
        **speeds,
        "of the engine": speeds["this project"] / speeds["engine alone"],
        "times lock-step": speeds["this project"] / speeds["lock-step"],
        "environment": f"{share:.1%}",
    }


def best(engine: VllmEngine, run: Callable[[], tuple[int, float]]) -> float:
    """Tokens a second; the prefix cache is empty at the start of each."""
    speeds = []
    for _ in range(REPEATS):
        engine.llm.reset_prefix_cache()
        tokens, seconds = run()
        speeds.append(tokens / seconds)
    return max(speeds)


def timed(run: Callable[[], int]) -> Callable[[], tuple[int, float]]:
    def measured() -> tuple[int, float]:
        started = time.perf_counter()
        return run(), time.perf_counter() - started

    return measured


def replay(engine: VllmEngine, played: Sequence[Trajectory]) -> int:
    """The very turns again: same prompts, token counts and dependencies, and nothing else."""
    vllm = import_vllm()
    kind = vllm.sampling_params.RequestOutputKind.FINAL_ONLY
    waiting = [
        [
            (
                {"type": "token", "prompt_token_ids": turn.prompt_ids},
                vllm.SamplingParams(
                    max_tokens=len(turn.reply_ids),
                    ignore_eos=True,
                    logprobs=0,
                    detokenize=False,
                    skip_clone=True,
                    output_kind=kind,
                ),
            )
            for turn in reversed(episode.turns)
        ]
        for episode in played
    ]
    inner = engine.llm.llm_engine
    owner: dict[str, int] = {}
    count = 0

    def queue(number: int) -> None:
        nonlocal count
        if waiting[number]:
            prompt, parameters = waiting[number].pop()
            owner[f"replay-{count}"] = number
            inner.add_request(f"replay-{count}", prompt, parameters)
            count += 1

    for number in range(len(waiting)):
        queue(number)
    tokens = 0
    while owner:
        for output in inner.step():
            if output.finished:
                tokens += len(output.outputs[0].token_ids)
                queue(owner.pop(output.request_id))
    return tokens


class Generation(VLLMGeneration):  # type: ignore[misc]
    """TRL's `generate` with its defaults, on the engine that is there already."""

    def __init__(self, llm: Any, *, most_tokens: int) -> None:
        self.llm, self.model, self.accelerator = llm, torch.nn.Module(), None
        self.mode, self.enable_sleep_mode, self.tensor_parallel_size = "colocate", False, 1
        self.temperature, self.top_p, self.top_k, self.min_p = 1.0, 1.0, 0, None
        self.repetition_penalty, self.max_completion_length = 1.0, most_tokens
        self.logprobs, self.structured_outputs_regex = 0, None
        self.generation_kwargs: dict[str, Any] = {}


def lock_step(rollout: RolloutRunner, generation: Generation, tasks: Sequence[EpisodeSpec]) -> int:
    """As TRL's loops do: one `generate` a turn for all episodes, which wait for the slowest."""
    playing = [Episode(rollout.environment, task) for task in tasks]
    tokens = 0
    while playing:
        prompts = [e.chat(rollout.chats).prompt(e.exchanges()) for e in playing]
        _, replies, _, _ = generation.generate(prompts, None, num_generations=1)
        for episode, reply_ids in zip(playing, replies, strict=True):
            tokens += len(reply_ids)
            episode.reply(episode.chat(rollout.chats).reply_text(reply_ids), reply_ids)
        playing = [episode for episode in playing if not episode.over]
    return tokens


if __name__ == "__main__":
    main()
