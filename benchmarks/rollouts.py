"""Rollout speed on a GPU: this project, lock-step, and the engine alone on the same turns.

python -m benchmarks.rollouts EPISODES[,EPISODES...] OVERRIDES...
"""

from __future__ import annotations

import cProfile
import pstats
import sys
import time
from collections.abc import Callable
from typing import Any

from hydra import compose, initialize_config_dir

from rl_experiments.check import check
from rl_experiments.policy import load_policy
from rl_experiments.rollout import Episode, Rollout, Task, Trajectory
from rl_experiments.schema import CONF_DIR, register
from rl_experiments.vllm_engine import VllmEngine, VllmSampler, import_vllm

REPEATS = 3


def main() -> None:
    counts, overrides = [int(word) for word in sys.argv[1].split(",")], sys.argv[2:]
    register()
    with initialize_config_dir(version_base=None, config_dir=str(CONF_DIR)):
        experiment = check(compose("config", [*overrides, "name=benchmark", "sampler=vllm"]))
    config, environment = experiment.config, experiment.environment
    policy = load_policy(config, environment)
    engine = policy.engine
    assert engine is not None
    print(policy.fit)
    rollout = policy.rollout(config, environment, temperature=config.trainer.temperature)
    for episodes in counts:
        compare(rollout, engine, episodes)


def compare(rollout: Rollout, engine: VllmEngine, episodes: int) -> None:
    """Measure each way of playing so many episodes, and print the figures."""
    tasks = [Task(2 * (number // 6), number % 6) for number in range(episodes)]
    rollout.play(tasks)  # warm: graphs, caches of the machine

    played: list[Trajectory] = []

    def ours() -> int:
        played[:] = rollout.play(tasks)
        return rollout.tokens

    def alone() -> int:
        return replay(engine, played)

    def in_step() -> int:
        return lock_step(rollout, tasks)

    speeds = {}
    for name, run in (("this project", ours), ("engine alone", alone), ("lock-step", in_step)):
        speeds[name] = max(measure(run, engine) for _ in range(REPEATS))
        print(f"{name:<14} {speeds[name]:8.0f} tokens/s")
    turns = sum(len(episode.turns) for episode in played)
    print(
        f"{turns} turns of {episodes} episodes; of the ceiling "
        f"{speeds['this project'] / speeds['engine alone']:.2f}, times lock-step "
        f"{speeds['this project'] / speeds['lock-step']:.2f}; environment "
        f"{rollout.environment_seconds:.3f} s, engine {_engine_seconds(rollout):.3f} s, sync "
        f"{engine.sync_seconds:.3f} s of {rollout.seconds:.3f} s"
    )
    profile = cProfile.Profile()
    profile.runcall(rollout.play, tasks)
    pstats.Stats(profile).sort_stats("tottime").print_stats(25)


def measure(run: Callable[[], int], engine: VllmEngine) -> float:
    """Tokens a second; the prefix cache is empty at the start of each."""
    engine.llm.reset_prefix_cache()
    started = time.perf_counter()
    tokens = run()
    return tokens / (time.perf_counter() - started)


def replay(engine: VllmEngine, played: list[Trajectory]) -> int:
    """The very turns again: same prompts, token counts and dependencies, and nothing else."""
    vllm = import_vllm()
    kind = vllm.sampling_params.RequestOutputKind.FINAL_ONLY
    waiting = [
        [
            (
                {"type": "token", "prompt_token_ids": turn.prompt_ids},
                vllm.SamplingParams(
                    max_tokens=len(turn.reply_ids),
                    min_tokens=len(turn.reply_ids),
                    ignore_eos=True,
                    logprobs=0,
                    detokenize=False,
                    output_kind=kind,
                ),
            )
            for turn in reversed(episode.turns)
            if turn.reply_ids
        ]
        for episode in played
    ]
    owner: dict[str, int] = {}
    count = 0

    def queue(number: int) -> None:
        nonlocal count
        if waiting[number]:
            prompt, parameters = waiting[number].pop()
            owner[f"replay-{count}"] = number
            engine._engine.add_request(f"replay-{count}", prompt, parameters)
            count += 1

    for number in range(len(waiting)):
        queue(number)
    tokens = 0
    while owner:
        for output in engine._engine.step():
            if output.finished:
                tokens += len(output.outputs[0].token_ids)
                queue(owner.pop(output.request_id))
    return tokens


def lock_step(rollout: Rollout, tasks: list[Task]) -> int:
    """As TRL's loops do: one `generate` a turn for all episodes, which wait for the slowest."""
    sampler: Any = rollout.sampler
    assert isinstance(sampler, VllmSampler)
    sampler.begin()
    playing = [Episode(rollout.environment, task) for task in tasks]
    tokens = 0
    while playing:
        prompts = [
            {"prompt_token_ids": rollout.chat.prompt(episode.exchanges())} for episode in playing
        ]
        outputs = sampler.engine.llm.generate(prompts, sampler._parameters, use_tqdm=False)
        for episode, output in zip(playing, outputs, strict=True):
            reply_ids = list(output.outputs[0].token_ids)
            tokens += len(reply_ids)
            episode.reply(rollout.chat.reply_text(reply_ids), reply_ids)
        playing = [episode for episode in playing if not episode.over]
    sampler.end()
    return tokens


def _engine_seconds(rollout: Rollout) -> float:
    assert isinstance(rollout.sampler, VllmSampler)
    return rollout.sampler.engine_seconds


if __name__ == "__main__":
    main()
