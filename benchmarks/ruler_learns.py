"""Whether training on a judge reaches what training on the true reward reaches, and what it costs.

python -m benchmarks.ruler_learns [SEED ...]        (0 1 2; three minutes a seed on two cores)

The tiny model learns to merge tiles in two moves, the least of 2048 that credit by episode learns
in a minute, by the environment's reward, by a judge that ranks by it, and by one that scores at
random; both judges are servers on loopback. Then the judge that ranks takes a second for each
answer. Fails if the gains of reward and ranking judge are not above zero or those two are apart,
if the random judge's gain reaches theirs, or if the correlation metric does not tell the judges.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from statistics import fmean

from benchmarks import runs
from environments.game2048.rewards import INVALID_REWARD, episode_reward
from tests.fakes.judge_server import attempts
from tests.fakes.openai_server import Body, OpenAIServer

WIN = 8
STEPS = 160
EXAMPLES = 1000
SETTINGS = (
    *("env=game2048", f"env.win_value={WIN}", "env.max_moves=2", "model=tiny"),
    *("reward.credit=episode", "trainer.learning_rate=2e-3", "trainer.num_generations=16"),
    "trainer.per_device_train_batch_size=32",  # 16 groups a generation, of eight steps
)
# Games that end one after another, so that judging has something to overlap with.
LONG = (
    *("env=game2048", "model=tiny", "reward.credit=episode", "trainer.max_steps=40"),
    *("env.rules=art", "env.max_moves=60", "model.max_length=1024", "num_examples=20"),
)
LATENCY = 1.0


def reward(text: str) -> float:
    """What the environment pays, from the outcome that the judge is shown."""
    if "<outcome>invalid" in text:
        return INVALID_REWARD
    found = re.search(r"max_value=(\d+); board_value=(\d+)", text)
    assert found, text
    return episode_reward(max_value=int(found[1]), board_value=int(found[2]), win_value=WIN)


def ranking(texts: Sequence[str]) -> list[float]:
    """The share of the others that earn less, ties by half."""
    rewards = [0.0 if "Reply with yes" in text else reward(text) for text in texts]
    others = max(1, len(texts) - 1)
    return [
        (sum(own > other for other in rewards) + (rewards.count(own) - 1) / 2) / others
        for own in rewards
    ]


def at_random(texts: Sequence[str]) -> list[float]:
    return [Random(text).random() for text in texts]


def answering(score: Callable[[Sequence[str]], list[float]]) -> Callable[[Body], str]:
    def reply(body: Body) -> str:
        shown = attempts(body)
        is_proof = "Reply with yes" in body["messages"][1]["content"]
        scores = [0.5] * len(shown) if is_proof else score([*shown.values()])
        entries = [
            {"id": name, "explanation": "", "score": own}
            for name, own in zip(shown, scores, strict=True)
        ]
        return json.dumps({"scores": entries})

    return reply


def judged_by(server: OpenAIServer) -> list[str]:
    address = f"judge.base_url={server.url}"
    return ["reward.ruler.enabled=true", "judge=openai", "judge.model=scripted", address]


def gain(run: Path) -> dict[str, float]:
    """Of the environment's reward on unseen seeds, from before to after."""
    found: dict[str, dict[str, float]] = json.loads((run / "evaluation.json").read_text())[
        "after - before"
    ]
    return found["reward"]


def mean_of(run: Path, metric: str) -> float:
    return fmean(line[metric] for line in runs.metrics(run) if metric in line)


def learn(seed: int) -> bool:
    """Print the gains of a seed; whether they are as they should be."""
    found, follows = {}, {}
    for name, score in (("true reward", None), ("ranking", ranking), ("random", at_random)):
        with OpenAIServer(answering(score or at_random)) as server:
            judge = judged_by(server) if score else []
            words = [*SETTINGS, f"trainer.max_steps={STEPS}", f"num_examples={EXAMPLES}"]
            run = runs.train(f"ruler-{seed}", [*words, f"seed={seed}", *judge], timeout=3600)
        found[name] = gain(run)
        told = f"seed {seed}  {name:<12} reward {runs.shown(found[name])}"
        if score:
            follows[name] = mean_of(run, "ruler/correlation")
            told += f"  correlation {follows[name]:+.3f}"
        print(f"{told}  {run}", flush=True)
    true, ranked, random = (found[name] for name in ("true reward", "ranking", "random"))
    learned = min(true["low"], ranked["low"]) > 0
    alike = max(true["low"], ranked["low"]) <= min(true["high"], ranked["high"])
    apart = random["high"] < min(true["low"], ranked["low"])
    return learned and alike and apart and follows["ranking"] > 0.9 and abs(follows["random"]) < 0.2


def overlap() -> None:
    """What a judge that takes a second costs, beside one that answers at once."""
    for latency in (0.0, LATENCY):
        with OpenAIServer(answering(ranking)) as server:
            server.latency = latency
            run = runs.train("ruler-overlap", [*LONG, *judged_by(server)], timeout=3600)
            requests = len(server.requests) - 1
        lines = runs.metrics(run)
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
    good = [learn(seed) for seed in [int(word) for word in sys.argv[1:]] or [0, 1, 2]]
    overlap()
    sys.exit(not all(good))


if __name__ == "__main__":
    main()
