"""A small policy made at random for one environment, warmed up on its reply format and no skill."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging

from environments import Environment, training_seed
from rl_experiments.chat import Chat, Exchange
from rl_experiments.rollout import Task, Trajectory, play_scripted, visible
from rl_experiments.schema import ScratchConfig

_EOS, _PAD = "<|im_end|>", "<|endoftext|>"
# ChatML, as Qwen2.5 and Qwen3 write it for plain messages.
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# A word is an XML element around one word, a tag, name=value, or letters and digits with the signs
# before them.
_WORD = r"<\w+>\w+</\w+>|</?\w+>|\s?\w+=\w+|[^\w<]*\w+|[^\w<]+|<"
_VERSION = 1  # raise when the same inputs would give another model


def scratch_model(scratch: ScratchConfig, environment: Environment, *, seed: int) -> Path:
    """The folder of the warmed-up policy, made at the first call and cached by content.

    The replies it learns are those of the environment's "random" baseline: the format, no skill.
    """
    episodes = list(_random_episodes(environment, scratch.warmup_episodes, seed))
    identity = {
        "version": _VERSION,
        "libraries": [torch.__version__, transformers.__version__],
        # Sums in another order give other weights.
        "device": [best_device().type, torch.get_num_threads()],
        "scratch": asdict(scratch),
        "seed": seed,
        "system_prompt": environment.system_prompt,
        "shown": environment.earlier_turns_shown,
        "episodes": [episode.to_json() for episode in episodes],
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_folder() / f"{environment.__class__.__name__.lower()}-{digest}"
    if not folder.exists():
        tokenizer = word_tokenizer(_texts(environment, episodes))
        model = _random_model(scratch, tokenizer, seed).to(best_device())
        warm_up(
            model,
            Chat(tokenizer, environment.system_prompt, environment.tools),
            environment,
            episodes,
            steps=scratch.warmup_steps,
            learning_rate=scratch.warmup_learning_rate,
            seed=seed,
        )
        _save(model, tokenizer, folder)
    return folder


def best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "rl_experiments" / "scratch"


def word_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A lossless tokenizer in which each word of the texts is one token, other text its bytes."""
    words = Counter(word for text in texts for word in re.findall(_WORD, text))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokens = [_PAD, "<|im_start|>", _EOS, *alphabet]
    for word in sorted(words):
        tokens.append("".join(piece for piece, _ in to_bytes.pre_tokenize_str(word)))
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    split = pre_tokenizers.Split(Regex(_WORD), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=_EOS,
        pad_token=_PAD,
        additional_special_tokens=["<|im_start|>"],
        chat_template=_CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def warm_up(
    model: transformers.PreTrainedModel,
    chat: Chat,
    environment: Environment,
    episodes: Sequence[Trajectory],
    *,
    steps: int,
    learning_rate: float,
    seed: int,
    batch_size: int = 64,
) -> None:
    """Teach the model to answer as the episodes do, by cross-entropy on the reply tokens."""
    examples: list[tuple[list[int], list[int]]] = []
    for episode in episodes:
        exchanges: list[Exchange] = []
        for turn in episode.turns:
            exchanges.append(Exchange(turn.observation, turn.role))
            reply_ids = chat.reply_ids(turn.reply)
            examples.append((chat.prompt(visible(exchanges, environment)), reply_ids))
            exchanges[-1] = Exchange(turn.observation, turn.role, reply_ids)
    rng = Random(f"warm-up/{seed}")
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    keep = 1 + max(len(reply) for _, reply in examples)
    model.train()
    for _ in range(steps):
        batch = rng.sample(examples, min(batch_size, len(examples)))
        width = max(len(prompt) + len(reply) for prompt, reply in batch)
        ids = torch.full((len(batch), width), int(chat.tokenizer.pad_token_id))
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        for i, (prompt, reply) in enumerate(batch):
            start = width - len(prompt) - len(reply)
            ids[i, start:] = torch.tensor(prompt + reply)
            mask[i, start:] = 1
            labels[i, -len(reply) :] = torch.tensor(reply)
        ids, mask, labels = (t.to(model.device) for t in (ids, mask, labels))
        logits = model(input_ids=ids, attention_mask=mask, logits_to_keep=keep).logits
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1 - keep :].flatten()
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def _random_episodes(environment: Environment, count: int, seed: int) -> list[Trajectory]:
    # Tasks far beyond those that a run of any length trains on.
    tasks = [Task(training_seed(seed, (1 << 31) + i)) for i in range(count)]
    policy = environment.baselines["random"]
    return list(play_scripted(environment, policy, tasks, name=f"warm-up/{seed}"))


def _texts(environment: Environment, episodes: Sequence[Trajectory]) -> list[str]:
    # A template starts each message with its role on a line of its own.
    texts = [f"system\n{environment.system_prompt}", "user\n", "assistant\n", "tool\n", "\n"]
    for episode in episodes:
        texts += [text for turn in episode.turns for text in (turn.observation, turn.reply)]
    return texts


def _random_model(
    scratch: ScratchConfig, tokenizer: PreTrainedTokenizerFast, seed: int
) -> Qwen3ForCausalLM:
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
    return Qwen3ForCausalLM(config)


def _save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        logging.disable_progress_bar()
        model.save_pretrained(building)
        tokenizer.save_pretrained(building)
        building.rename(folder)
    except OSError:
        shutil.rmtree(building, ignore_errors=True)
        if not folder.exists():  # else another process was first, with the same content
            raise
