"""The tiny model: made at random for one environment, and taught its reply format but no skill."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import torch
import transformers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging

from environments import Environment, training_seed
from rl_experiments.config.schema import ScratchConfig
from rl_experiments.models.tiny_tokenizer import texts_of, word_tokenizer
from rl_experiments.paths import cache_folder
from rl_experiments.rollout.episode import play_scripted, visible_turns
from rl_experiments.rollout.renderer import ChatTurn, RendererCache
from rl_experiments.rollout.types import EpisodeSpec, Trajectory
from rl_experiments.storage.files import atomic_path

_VERSION = 1  # to be raised when the same settings would give another model
# Parameters x tokens of a warm-up step: a step has fewer tokens where the model is large. An H200
# does the 150 steps of a model of 3 billion parameters in half a minute.
_MAX_STEP_WORK = 8e12
# Tokens of a warm-up step: with a vocabulary of 152,000 its logits are fewer than 2^31 numbers.
_MAX_STEP_TOKENS = 8192
# From this many parameters on, activations are computed again to save memory.
_CHECKPOINTING_PARAMETERS = 100_000_000
# The seeds of the warm-up's episodes begin here, beyond those that a run of any length trains on.
_FIRST_WARM_UP_SEED = 1 << 31
IGNORED = -100  # the label of a token that the cross-entropy leaves out


def scratch_model(scratch: ScratchConfig, environment: Environment, *, seed: int) -> Path:
    """Return the folder of the warmed-up model; it is made by the first call and then cached.

    The warm-up imitates the environment's "random" baseline: it teaches the format of a reply.
    """
    episodes = list(random_episodes(environment, scratch.warmup_episodes, seed))
    identity = {
        "version": _VERSION,
        "libraries": [torch.__version__, transformers.__version__],
        # Another device or number of threads adds up in another order, which gives other weights.
        "device": [best_device().type, torch.get_num_threads()],
        "scratch": asdict(scratch),
        "seed": seed,
        "shown": environment.earlier_turns_shown,
        "episodes": [episode.to_json() for episode in episodes],
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_folder() / f"{environment.__class__.__name__.lower()}-{digest}"
    if not folder.exists():
        tokenizer = word_tokenizer(texts_of(episodes))
        model = random_model(scratch, tokenizer, seed=seed)
        examples = turn_examples(RendererCache(tokenizer), environment, episodes)
        warm_up(model, examples, scratch, pad_token_id=int(tokenizer.pad_token_id), seed=seed)
        save(model, tokenizer, folder)
    return folder


def best_device() -> torch.device:
    """Return the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Example:
    """A chat to imitate; `labels` are its tokens, with IGNORED for those that are no reply."""

    ids: list[int]
    labels: list[int]


def turn_examples(
    renderers: RendererCache, environment: Environment, episodes: Sequence[Trajectory]
) -> list[Example]:
    """Return one example for each turn: the prompt that the policy would see, and the reply."""
    examples = []
    for episode in episodes:
        history: list[ChatTurn] = []
        renderer = renderers.get(episode.system_prompt, episode.tools)
        for turn in episode.turns:
            history.append(ChatTurn(turn.observation, turn.role))
            reply = renderer.reply_ids(turn.reply)
            prompt = renderer.prompt(visible_turns(history, environment))
            examples.append(Example(prompt + reply, [IGNORED] * len(prompt) + reply))
            history[-1] = ChatTurn(turn.observation, turn.role, reply)
    return examples


def warm_up(
    model: transformers.PreTrainedModel,
    examples: Sequence[Example],
    scratch: ScratchConfig,
    *,
    pad_token_id: int,
    seed: int,
    batch_size: int = 64,
) -> None:
    """Train the model to reply as the examples do, by cross-entropy on the reply's tokens.

    Raises `FloatingPointError` if the loss is not finite in the end.
    """
    rng = Random(f"warm-up/{seed}")
    steps, on_gpu = scratch.warmup_steps, model.device.type == "cuda"
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=scratch.warmup_learning_rate,
        weight_decay=0.0,
        fused=on_gpu or None,
    )
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    parameters = model.num_parameters()
    max_tokens = min(_MAX_STEP_TOKENS, _MAX_STEP_WORK / parameters)
    if parameters > _CHECKPOINTING_PARAMETERS:
        model.gradient_checkpointing_enable()
    model.train()
    loss = torch.zeros(())
    for _ in range(steps):
        batch = _sample_batch(rng, examples, size=batch_size, max_tokens=max_tokens)
        width = max(len(example.ids) for example in batch)
        ids = torch.full((len(batch), width), pad_token_id)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
        for i, example in enumerate(batch):
            # On a GPU rows are padded on the right: attention is causal, so that padding after a
            # row needs no mask, and is faster without one.
            start = 0 if on_gpu else width - len(example.ids)
            row = slice(start, start + len(example.ids))
            ids[i, row] = torch.tensor(example.ids)
            mask[i, row] = 1
            labels[i, row] = torch.tensor(example.labels)
        # Logits are computed from the last token before the first reply on.
        keep = 1 + width - int((labels != IGNORED).any(0).int().argmax())
        ids, mask, labels = (t.to(model.device) for t in (ids, mask, labels))
        with torch.autocast("cuda", torch.bfloat16, enabled=on_gpu):
            logits = model(
                input_ids=ids, attention_mask=None if on_gpu else mask, logits_to_keep=keep
            ).logits
            loss = torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), labels[:, 1 - keep :].flatten()
            )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    if not torch.isfinite(loss):
        raise FloatingPointError(
            f"the warm-up ended with a loss of {loss.item()}; lower "
            "model.scratch.warmup_learning_rate"
        )


def _sample_batch(
    rng: Random, examples: Sequence[Example], *, size: int, max_tokens: float
) -> list[Example]:
    """Draw at most `size` examples that have at most `max_tokens` after padding; at least one."""
    batch: list[Example] = []
    width = 0
    for example in rng.sample(examples, min(size, len(examples))):
        new_width = max(width, len(example.ids))
        if not batch or new_width * (len(batch) + 1) <= max_tokens:
            batch.append(example)
            width = new_width
    return batch


def random_episodes(environment: Environment, count: int, seed: int) -> list[Trajectory]:
    """Play `count` episodes with the environment's "random" baseline."""
    specs = [EpisodeSpec(training_seed(seed, _FIRST_WARM_UP_SEED + i)) for i in range(count)]
    policy = environment.baselines["random"]
    return list(play_scripted(environment, policy, specs, name=f"warm-up/{seed}"))


def random_model(
    scratch: ScratchConfig, tokenizer: PreTrainedTokenizerFast, *, seed: int
) -> Qwen3ForCausalLM:
    """Return a Qwen3 model with random weights, on the best device."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=max(len(tokenizer), scratch.vocab_size or 0),
        hidden_size=scratch.hidden_size,
        intermediate_size=scratch.intermediate_size,
        num_hidden_layers=scratch.num_hidden_layers,
        num_attention_heads=scratch.num_attention_heads,
        num_key_value_heads=scratch.num_key_value_heads,
        head_dim=scratch.head_dim,
        initializer_range=scratch.initializer_range,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        dtype="float32",
    )
    with best_device():
        return Qwen3ForCausalLM(config)


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write model and tokenizer to a folder, which is complete as soon as it exists."""
    try:
        with atomic_path(folder) as unfinished:
            logging.disable_progress_bar()
            model.save_pretrained(unfinished)
            tokenizer.save_pretrained(unfinished)
    except OSError:
        if not folder.exists():  # if it does, another process has written the same content
            raise
