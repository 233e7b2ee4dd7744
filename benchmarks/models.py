"""Models of real size with random weights, and a tokenizer that counts about as Qwen's does.

python -m benchmarks.models SIZE...        (0.5b, 3b or small; prints the folder of each)

Their warm-up teaches the reply formats of the benchmarks' environments, and no skill.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from trl.chat_template_utils import qwen2_5_chat_template

from benchmarks.environments import ToolGame2048, WordGame
from environments import Environment
from environments.game2048 import Game2048
from environments.game2048.env import Rules
from rl_experiments.config.schema import ScratchConfig
from rl_experiments.models.tiny import (
    IGNORED,
    Example,
    best_device,
    random_episodes,
    random_model,
    save,
    warm_up,
)
from rl_experiments.models.tiny_tokenizer import texts_of, word_tokenizer
from rl_experiments.paths import cache_folder
from rl_experiments.rollout.episode import visible_turns
from rl_experiments.rollout.renderer import ChatTurn, RendererCache
from rl_experiments.rollout.types import Trajectory
from rl_experiments.training.samples import trajectory_to_samples

# The sizes of Qwen2.5. `small` is for trying the benchmarks on a CPU.
_QWEN2_5 = ScratchConfig(
    vocab_size=151936,
    initializer_range=0.02,
    warmup_episodes=150,
    warmup_steps=250,
    warmup_learning_rate=2e-4,
)
SIZES = {
    "0.5b": replace(
        _QWEN2_5,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        head_dim=64,
    ),
    "3b": replace(
        _QWEN2_5,
        hidden_size=2048,
        intermediate_size=11008,
        num_hidden_layers=36,
        num_attention_heads=16,
        head_dim=128,
        warmup_learning_rate=1e-4,
    ),
    "small": ScratchConfig(warmup_episodes=30, warmup_steps=200),
}
MAX_MOVES = 60  # of a game of 2048 in the warm-up
# One episode in four is shown to its end, the others for ten turns. So a batch has several episodes
# of each kind, and the model learns the format in long histories too.
WHOLE_EPISODE_EVERY = 4
SHORT_EPISODE_TURNS = 10
# The factor of all logits. Random moves stay random, but errors of the format become rare, so that
# games of hundreds of tokens reach their end.
LOGIT_FACTOR = 1.5
# Tags, brackets and words are tokens of their own, and digits are split, as in Qwen's vocabulary.
_WORD = r"</?tool_(?:call|response)>| ?[A-Za-z]+|\d| ?_\|?\n?|\|| ?[^\sA-Za-z\d|_]+\n*|\s"
_VERSION = 4  # increase it when a change makes another model from the same inputs


def model_folder(size: str) -> Path:
    """Return the folder of a model; the first call on a machine makes the model."""
    folder = _folder(size)
    if not folder.exists():  # in a process of its own, which frees its memory
        command = [sys.executable, "-m", "benchmarks.models", size]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder


def _folder(size: str) -> Path:
    identity = json.dumps([_VERSION, asdict(SIZES[size]), best_device().type], sort_keys=True)
    digest = hashlib.sha256(identity.encode()).hexdigest()[:8]
    return cache_folder() / f"benchmark-{size}-{digest}"


def make(size: str, folder: Path) -> None:
    """Make a model with random weights, train it on random play, and save it."""
    scratch, started, is_small = SIZES[size], time.perf_counter(), size == "small"
    moves = 12 if is_small else MAX_MOVES
    # With `earlier_turns=4` each turn is a sample of its own, so a few episodes are enough.
    kinds: list[tuple[Environment, int]] = [
        (Game2048(rules=Rules.art, max_moves=moves), scratch.warmup_episodes),
        (Game2048(rules=Rules.art, max_moves=moves, earlier_turns=4), 4),
        (ToolGame2048(rules=Rules.art, max_moves=moves), scratch.warmup_episodes),
        (WordGame(), scratch.warmup_episodes),
    ]
    played = [(env, list(random_episodes(env, count, seed=0))) for env, count in kinds]
    texts = [text for _, episodes in played for text in texts_of(episodes)]
    tools = [json.dumps(episodes[0].tools) for _, episodes in played]
    tokenizer = word_tokenizer([*texts, *tools, qwen2_5_chat_template], word=_WORD)
    tokenizer.chat_template = qwen2_5_chat_template
    examples = [e for env, episodes in played for e in _examples(tokenizer, env, episodes)]
    model = random_model(scratch, tokenizer, seed=0)
    warm_up(
        model,
        examples,
        scratch,
        pad_token_id=int(tokenizer.pad_token_id),
        seed=0,
        batch_size=16 if is_small else 64,
    )
    with torch.no_grad():
        model.model.norm.weight *= LOGIT_FACTOR
    save(model if is_small else model.to(torch.bfloat16), tokenizer, folder)
    print(f"{folder}: made in {time.perf_counter() - started:.0f} s", file=sys.stderr)


def _examples(
    tokenizer: Any, environment: Environment, episodes: Sequence[Trajectory]
) -> Iterator[Example]:
    """Yield the episodes as training examples, in which only the replies are learned."""
    chats = RendererCache(tokenizer)
    for number, episode in enumerate(episodes):
        exchanges: list[ChatTurn] = []
        chat = chats.get(episode.system_prompt, episode.tools)
        if number % WHOLE_EPISODE_EVERY:
            del episode.turns[SHORT_EPISODE_TURNS:]
        for turn in episode.turns:
            exchanges.append(ChatTurn(turn.observation, turn.role))
            turn.prompt_ids = chat.prompt(visible_turns(exchanges, environment))
            turn.reply_ids = chat.reply_ids(turn.reply)
            exchanges[-1] = ChatTurn(turn.observation, turn.role, turn.reply_ids)
        for sample in trajectory_to_samples(episode, [0.0] * len(episode.turns)):
            labels = [
                token if written else IGNORED
                for token, written in zip(sample.completion_ids, sample.mask, strict=True)
            ]
            prompt = sample.prompt_ids
            yield Example(prompt + sample.completion_ids, [IGNORED] * len(prompt) + labels)


def main() -> None:
    for size in sys.argv[1:]:
        folder = _folder(size)
        if not folder.exists():
            make(size, folder)
        print(folder)


if __name__ == "__main__":
    main()
