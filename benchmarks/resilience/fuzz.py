"""Give every shipped environment arbitrary replies: none may raise, and none may take 50 ms.

python -m benchmarks.resilience.fuzz [REPLIES] [ENV...]

The default is 100,000 replies to each environment. They are noise, long repetitions, and replies of
the environment's scripted policies with pieces deleted, doubled, swapped or inserted. An episode
with a slow step is played again, and the step counts as slow only if it is slow each time.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from random import Random

from hydra import compose, initialize_config_dir

from environments import Environment
from rl_experiments.config.environment import build_environment
from rl_experiments.config.registration import register
from rl_experiments.paths import CONF_DIR

MAX_CPU_SECONDS = 0.05  # of a step
MAX_REPLY_CHARACTERS = 20_000  # as many as 4,096 tokens have
SETTINGS = {
    "game2048": [],
    "wordle": [],
    "gsm8k": ["env.data=gsm_symbolic"],
    "bfcl_single_turn": [],
    "tool_test": [],
    "reasoning_gym": ["env.dataset=chain_sum+maze+countdown"],
    "textarena": [],
    "gymnasium": [],
}
PIECES = (
    *("<think>", "</think>", "<guess>", "</guess>", "<move>", "</move>", "<answer>", "\\boxed{"),
    *("####", "<tool_call>", "</tool_call>", '{"name": ', '"arguments": {', "}", "[", "]"),
    *('"', "\\", "\\ud800", "NaN", "1e999", "-0", "9" * 5000, "½", "٣", "\0", "\u2028"),
    *("\n", "$", ",", ".", "(("),
)


def replies(environment: Environment, rng: Random) -> Iterator[str]:
    """Yield replies without end to the environment, which is in the middle of an episode."""
    scripted = list(environment.baselines.values())
    while True:
        kind = rng.randrange(8)
        if kind == 0:
            yield rng.randbytes(rng.randrange(500)).decode("latin-1")
        elif kind == 1:
            yield "".join(
                chr(rng.choice((rng.randrange(0xD800), rng.randrange(128)))) for _ in "x" * 40
            )
        elif kind == 2 and rng.random() < 0.1:
            piece = rng.choice(PIECES)
            yield (piece * (MAX_REPLY_CHARACTERS // len(piece) + 1))[
                : rng.randrange(MAX_REPLY_CHARACTERS)
            ]
        elif kind == 3:
            yield "".join(rng.choices(PIECES, k=rng.randrange(1, 12)))
        else:
            yield mutated(rng.choice(scripted)(environment, rng), rng)


def mutated(text: str, rng: Random) -> str:
    """Return the text after a few random edits."""
    for _ in range(rng.choice((0, 1, 1, 2, 4, 8))):
        start = rng.randrange(len(text) + 1)
        end = min(len(text), start + rng.randrange(1, 20))
        head, span, tail = text[:start], text[start:end], text[end:]
        text = rng.choice(
            (
                head + tail,
                head + span * rng.choice((2, 3, 200)) + tail,
                head + rng.choice(PIECES) + span + tail,
                tail + span + head,
                head + span[::-1] + tail,
            )
        )[:MAX_REPLY_CHARACTERS]
    return text


def fuzz(name: str, count: int) -> bool:
    """Play, print a summary, and return whether no reply raised or was slow."""
    with initialize_config_dir(version_base=None, config_dir=str(CONF_DIR)):
        words = [f"env={name}", "name=fuzz", *SETTINGS[name]]
        environment = build_environment(compose("config", overrides=words).env)
    rng, seed, replied, slowest = Random(name), 0, 0, 0.0
    while replied < count:
        environment.reset(seed, member=seed % 3)
        played: list[str] = []
        for reply in replies(environment, rng):
            started = time.thread_time()
            step = environment.step(reply)
            seconds = time.thread_time() - started
            played.append(reply)
            replied += 1
            if seconds > MAX_CPU_SECONDS:
                repeats = [seconds_of_last(environment, seed, played) for _ in range(2)]
                seconds = min(seconds, *repeats)
            slowest = max(slowest, seconds)
            if not math.isfinite(step.reward) or not math.isfinite(step.episode_reward or 0.0):
                print(
                    f"{name}: a reward of {step.reward}, {step.episode_reward} for {reply!r:.200}"
                )
                return False
            if seconds > MAX_CPU_SECONDS:
                print(f"{name}: {seconds * 1e3:.0f} ms for {len(reply)} characters: {reply!r:.200}")
                return False
            if step.end is not None:
                break
        seed += 1
    print(
        f"{name}: {replied:,} replies in {seed:,} episodes; the slowest took {slowest * 1e3:.1f} ms"
    )
    return True


def seconds_of_last(environment: Environment, seed: int, played: list[str]) -> float:
    """Play an episode again and return the processor seconds of its last reply."""
    other = environment.fresh()
    other.reset(seed, member=seed % 3)
    for reply in played:
        started = time.thread_time()
        other.step(reply)
    return time.thread_time() - started


def main() -> None:
    count = int(sys.argv[1]) if sys.argv[1:] else 100_000
    register()
    passed = [fuzz(name, count) for name in sys.argv[2:] or SETTINGS]
    sys.exit(not all(passed))


if __name__ == "__main__":
    main()
