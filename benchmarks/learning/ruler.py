"""Does training on a judge reach what training on the true reward reaches, and what does it cost?

python -m benchmarks.learning.ruler [SEED ...]   (default 0 1 2; three minutes a seed on two cores)

The tiny model learns to merge tiles within two moves, the smallest task of 2048 that credit by
episode learns in a minute. It trains on the environment's reward, on a judge that ranks by that
reward, and on a judge that scores at random; both judges are servers on loopback. A last part
measures a ranking judge that takes a second for each answer.

Fails if the true reward or the ranking judge gains nothing, if the intervals of these two gains are
apart, if the random judge's gain reaches theirs, or if the correlation metric does not separate the
two judges.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from statistics import fmean

from benchmarks import _results as results
from environments.game2048.rewards import INVALID_REWARD, episode_reward
from tests.fakes.judge_server import attempts
from tests.fakes.openai_server import Body, OpenAIServer

WIN = 8
STEPS = 160
EXAMPLES = 1000
SETTINGS = (
    *("env=game2048", f"env.win_value={WIN}", "env.max_moves=2", "model=tiny"),
    *("reward.credit=episode", "trainer.learning_rate=2e-3", "trainer.num_generations=16"),
    "trainer.per_device_train_batch_size=32",  # a generation is 16 groups and eight steps
)
# Games of different lengths, so that judging can overlap with play.
LONG = (
    *("env=game2048", "model=tiny", "reward.credit=episode", "trainer.max_steps=40"),
    *("env.rules=art", "env.max_moves=60", "model.max_length=1024", "num_examples=20"),
)
LATENCY_SECONDS = 1.0


def reward(text: str) -> float:
    """Return the environment's reward, computed from the outcome that the judge sees."""
    if "<outcome>invalid" in text:
        return INVALID_REWARD
    match = re.search(r"max_value=(\d+); board_value=(\d+)", text)
    assert match, text
    return episode_reward(max_value=int(match[1]), board_value=int(match[2]), win_value=WIN)


def ranking(texts: Sequence[str]) -> list[float]:
    """Score each attempt by the share of the others that earn less; a tie counts half."""
    rewards = [0.0 if "Reply with yes" in text else reward(text) for text in texts]
    others = max(1, len(texts) - 1)
    return [
        (sum(mine > other for other in rewards) + (rewards.count(mine) - 1) / 2) / others
        for mine in rewards
    ]


def at_random(texts: Sequence[str]) -> list[float]:
    """Score each attempt at random, and equal attempts alike."""
    return [Random(text).random() for text in texts]


def answering(score: Callable[[Sequence[str]], list[float]]) -> Callable[[Body], str]:
    """Return the reply function of a judge's server that scores attempts with `score`."""

    def reply(body: Body) -> str:
        shown = attempts(body)
        is_proof = "Reply with yes" in body["messages"][1]["content"]
        scores = [0.5] * len(shown) if is_proof else score([*shown.values()])
        entries = [
            {"id": name, "explanation": "", "score": value}
            for name, value in zip(shown, scores, strict=True)
        ]
        return json.dumps({"scores": entries})

    return reply


def judged_by(server: OpenAIServer) -> list[str]:
    """Return the overrides that let the server judge."""
    address = f"judge.base_url={server.url}"
    return ["reward.ruler.enabled=true", "judge=openai", "judge.model=scripted", address]


def gain(run: Path) -> dict[str, float]:
    """Return the gain of the environment's reward on unseen seeds, with its interval."""
    evaluation = json.loads((run / "evaluation.json").read_text())
    reward_gain: dict[str, float] = evaluation["after - before"]["reward"]
    return reward_gain


def mean_of(run: Path, metric: str) -> float:
    """Return the mean of a metric over the log entries that have it."""
    return fmean(line[metric] for line in results.metrics(run) if metric in line)


def learn(seed: int) -> bool:
    """Train a seed on each reward, print the gains, and return whether they are as expected."""
    gains, correlations = {}, {}
    for name, score in (("true reward", None), ("ranking", ranking), ("random", at_random)):
        with OpenAIServer(answering(score or at_random)) as server:
            judge = judged_by(server) if score else []
            words = [
                *(*SETTINGS, f"trainer.max_steps={STEPS}", f"num_examples={EXAMPLES}"),
                *(f"seed={seed}", *judge),
            ]
            run = results.train(f"ruler-{seed}", words, timeout_seconds=3600)
        gains[name] = gain(run)
        line = f"seed {seed}  {name:<12} reward {results.format_estimate(gains[name])}"
        if score:
            correlations[name] = mean_of(run, "ruler/correlation")
            line += f"  correlation {correlations[name]:+.3f}"
        print(f"{line}  {run}", flush=True)
    true, ranked, random = (gains[name] for name in ("true reward", "ranking", "random"))
    learned = min(true["low"], ranked["low"]) > 0
    alike = max(true["low"], ranked["low"]) <= min(true["high"], ranked["high"])
    apart = random["high"] < min(true["low"], ranked["low"])
    separated = correlations["ranking"] > 0.9 and abs(correlations["random"]) < 0.2
    return learned and alike and apart and separated


def overlap() -> None:
    """Print how long training waits for a judge that answers at once, and for a slow one."""
    for latency in (0.0, LATENCY_SECONDS):
        with OpenAIServer(answering(ranking)) as server:
            server.latency = latency
            run = results.train("ruler-overlap", [*LONG, *judged_by(server)], timeout_seconds=3600)
            requests = len(server.requests) - 1
        lines = results.metrics(run)
        waited = fmean(line["time/judge"] for line in lines)
        rollout = fmean(line["time/rollout"] for line in lines)
        total = fmean(line["time/total"] for line in lines)
        groups = requests / len(lines)
        print(
            f"latency {latency:g} s: of {total:.2f} s a generation, {rollout:.2f} s of them its "
            f"rollout, training waited {waited:.2f} s for the scores of {groups:.1f} groups",
            flush=True,
        )


def main() -> None:
    as_expected = [learn(seed) for seed in [int(word) for word in sys.argv[1:]] or [0, 1, 2]]
    overlap()
    sys.exit(not all(as_expected))


if __name__ == "__main__":
    main()
