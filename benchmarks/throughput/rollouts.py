"""Rollout speed on a GPU: this project, TRL's lock-step, and the engine alone on the same turns.

python -m benchmarks.throughput.rollouts SIZE [--episodes 18,64] [--moves 40] [--out FILE]
                                         [OVERRIDES...]

SIZE is 0.5b, 3b or small. --moves limits a game of 2048; --out appends each row to a file as a JSON
line. One engine plays everything. Each way is measured three times, without the weight sync, and
the best time counts. Fails if the project reaches less than 0.9 of the engine alone.
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

from benchmarks import _results as results
from benchmarks.environments import WordGame
from benchmarks.models import SIZES
from environments import Environment, training_seed
from environments.game2048 import Game2048
from environments.game2048.env import Rules
from rl_experiments.config.registration import register
from rl_experiments.inference.vllm_colocated import VllmEngine, import_vllm
from rl_experiments.models.policy import load_policy
from rl_experiments.paths import CONF_DIR
from rl_experiments.preflight import check
from rl_experiments.rollout.episode import Episode
from rl_experiments.rollout.runner import RolloutRunner
from rl_experiments.rollout.types import EpisodeSpec, Trajectory

REPEATS = 3
GROUP_SIZE = 6  # episodes with the same start
MIN_SHARE_OF_ENGINE = 0.9


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("--episodes", default="18,64")
    parser.add_argument("--moves", type=int, default=40)
    parser.add_argument("--out", type=Path)
    parser.add_argument(
        "--profile", action="store_true", help="print a profile of the project's rollouts"
    )
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_intermixed_args()
    register()
    settings = [
        *results.model_overrides(arguments.size),
        *("name=benchmark", "sampler=vllm", "model.max_length=8192"),
        *(
            "vllm.sleep=false",
            "vllm.gpu_memory_utilization=0.5",
        ),  # room for the KV cache of all histories
    ]
    with initialize_config_dir(version_base=None, config_dir=str(CONF_DIR)):
        experiment = check(compose("config", [*settings, *arguments.overrides]))
    config = experiment.config
    game = Game2048(rules=Rules.art, max_moves=arguments.moves)
    # Each with the maximum number of tokens of a reply.
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
        for episodes in map(int, arguments.episodes.split(",")):
            row = {"model": arguments.size, "task": name, **compare(rollout, engine, episodes)}
            rows.append(row)
            print(json.dumps(row), flush=True)
            if arguments.out:
                with arguments.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
            if arguments.profile:
                profile = cProfile.Profile()
                profile.runcall(rollout.play, tasks_of(episodes))
                pstats.Stats(profile).sort_stats("tottime").print_stats(25)
    print(
        f"tokens/s; games of 2048 end after {arguments.moves} moves; "
        "lock-step is TRL's own generate"
    )
    print(results.markdown_table(rows))
    sys.exit(min(row["of the engine"] for row in rows) < MIN_SHARE_OF_ENGINE)


def tasks_of(episodes: int) -> list[EpisodeSpec]:
    return [EpisodeSpec(training_seed(0, i // GROUP_SIZE), i % GROUP_SIZE) for i in range(episodes)]


def compare(rollout: RolloutRunner, engine: VllmEngine, episodes: int) -> dict[str, Any]:
    """Measure each way of playing this number of episodes, and return a row of the table."""
    tasks = tasks_of(episodes)
    played: list[Trajectory] = rollout.play(
        tasks
    )  # a warm-up: captures graphs, fills the caches of the machine

    def ours() -> tuple[int, float]:
        played[:] = rollout.play(tasks)
        return rollout.tokens, rollout.seconds

    generation = Generation(engine.llm, max_tokens=rollout.max_new_tokens)
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
    """Return the best speed in tokens a second; each repeat starts with an empty prefix cache."""
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
    """Let the engine alone play the recorded turns again, and return their tokens.

    Prompts, token counts and the order of the turns of an episode are the recorded ones.
    """
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
    """TRL's generation with its default settings, on an engine that exists already."""

    def __init__(self, llm: Any, *, max_tokens: int) -> None:
        self.llm, self.model, self.accelerator = llm, torch.nn.Module(), None
        self.mode, self.enable_sleep_mode, self.tensor_parallel_size = "colocate", False, 1
        self.temperature, self.top_p, self.top_k, self.min_p = 1.0, 1.0, 0, None
        self.repetition_penalty, self.max_completion_length = 1.0, max_tokens
        self.logprobs, self.structured_outputs_regex = 0, None
        self.generation_kwargs: dict[str, Any] = {}


def lock_step(rollout: RolloutRunner, generation: Generation, tasks: Sequence[EpisodeSpec]) -> int:
    """Play as TRL does: one `generate` a turn for all episodes, which wait for the slowest."""
    playing = [Episode(rollout.environment, task) for task in tasks]
    tokens = 0
    while playing:
        prompts = [e.renderer(rollout.renderers).prompt(e.visible_turns()) for e in playing]
        _, replies, _, _ = generation.generate(prompts, None, num_generations=1)
        for episode, reply_ids in zip(playing, replies, strict=True):
            tokens += len(reply_ids)
            episode.reply(episode.renderer(rollout.renderers).reply_text(reply_ids), reply_ids)
        playing = [episode for episode in playing if not episode.over]
    return tokens


if __name__ == "__main__":
    main()
