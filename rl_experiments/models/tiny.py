"""A small policy made at random for one environment, warmed up on its reply format and no skill."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging

from environments import Environment, training_seed
from rl_experiments.config.schema import ScratchConfig
from rl_experiments.rollout.episode import play_scripted, visible_turns
from rl_experiments.rollout.renderer import ChatTurn, RendererCache
from rl_experiments.rollout.types import EpisodeSpec, Trajectory
from rl_experiments.storage.files import atomic_path

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
# Of a step of the warm-up, which has fewer rows where they are long or the model is large: for
# parameters x tokens. An H200 does the 150 steps of 3B parameters in half a minute.
_STEP_WORK = 8e12
_STEP_TOKENS = 8192  # whose logits stay below 2^31 numbers, with a vocabulary of 152,000
_LARGE = 100_000_000  # parameters from which activations are computed again to save memory
IGNORED = -100  # the label of a token that is not learned


def scratch_model(scratch: ScratchConfig, environment: Environment, *, seed: int) -> Path:
    """The folder of the warmed-up policy, made at the first call and cached by content.

    The replies it learns are those of the environment's "random" baseline: the format, no skill.
    """
    episodes = list(random_episodes(environment, scratch.warmup_episodes, seed))
    identity = {
        "version": _VERSION,
        "libraries": [torch.__version__, transformers.__version__],
        # Sums in another order give other weights.
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
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "rl_experiments" / "scratch"


def word_tokenizer(texts: Sequence[str], *, word: str = _WORD) -> PreTrainedTokenizerFast:
    """A lossless tokenizer in which each word of the texts is one token, other text its bytes."""
    words = Counter(found for text in texts for found in re.findall(word, text))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokens = [_PAD, "<|im_start|>", _EOS, *alphabet]
    for found in sorted(words):
        tokens.append("".join(piece for piece, _ in to_bytes.pre_tokenize_str(found)))
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    split = pre_tokenizers.Split(Regex(word), "isolated")
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


@dataclass(frozen=True)
class Example:
    """A chat to imitate: its tokens, and as labels those of the replies among them."""

    ids: list[int]
    labels: list[int]


def turn_examples(
    chats: RendererCache, environment: Environment, episodes: Sequence[Trajectory]
) -> list[Example]:
    """Each turn of the episodes by itself, after what the policy sees before it."""
    examples = []
    for episode in episodes:
        exchanges: list[ChatTurn] = []
        chat = chats.get(episode.system_prompt, episode.tools)
        for turn in episode.turns:
            exchanges.append(ChatTurn(turn.observation, turn.role))
            reply = chat.reply_ids(turn.reply)
            prompt = chat.prompt(visible_turns(exchanges, environment))
            examples.append(Example(prompt + reply, [IGNORED] * len(prompt) + reply))
            exchanges[-1] = ChatTurn(turn.observation, turn.role, reply)
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
    """Teach the model to answer as the examples do, by cross-entropy on the reply tokens."""
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
    most_tokens = min(_STEP_TOKENS, _STEP_WORK / parameters)
    if parameters > _LARGE:
        model.gradient_checkpointing_enable()
    model.train()
    loss = torch.zeros(())
    for _ in range(steps):
        batch = _batch(rng, examples, size=batch_size, most_tokens=most_tokens)
        width = max(len(example.ids) for example in batch)
        ids = torch.full((len(batch), width), pad_token_id)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
        for i, example in enumerate(batch):
            # On a GPU what follows a row needs no mask, and attention is faster without.
            start = 0 if on_gpu else width - len(example.ids)
            row = slice(start, start + len(example.ids))
            ids[i, row] = torch.tensor(example.ids)
            mask[i, row] = 1
            labels[i, row] = torch.tensor(example.labels)
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
        raise FloatingPointError(f"the warm-up has come to a loss of {loss.item()}")


def _batch(
    rng: Random, examples: Sequence[Example], *, size: int, most_tokens: float
) -> list[Example]:
    """At most so many examples, of at most so many tokens when padded; one at least."""
    batch: list[Example] = []
    width = 0
    for example in rng.sample(examples, min(size, len(examples))):
        wider = max(width, len(example.ids))
        if not batch or wider * (len(batch) + 1) <= most_tokens:
            batch.append(example)
            width = wider
    return batch


def random_episodes(environment: Environment, count: int, seed: int) -> list[Trajectory]:
    # Tasks far beyond those that a run of any length trains on.
    tasks = [EpisodeSpec(training_seed(seed, (1 << 31) + i)) for i in range(count)]
    policy = environment.baselines["random"]
    return list(play_scripted(environment, policy, tasks, name=f"warm-up/{seed}"))


def texts_of(episodes: Sequence[Trajectory]) -> list[str]:
    # A template starts each message with its role on a line of its own.
    texts = ["user\n", "assistant\n", "tool\n", "\n"]
    for episode in episodes:
        texts.append(f"system\n{episode.system_prompt}")
        texts += [text for turn in episode.turns for text in (turn.observation, turn.reply)]
    return texts


def random_model(
    scratch: ScratchConfig, tokenizer: PreTrainedTokenizerFast, *, seed: int
) -> Qwen3ForCausalLM:
    """The architecture with random weights, on the best device."""
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
    """Put both in the folder, which is there either whole or not at all."""
    try:
        with atomic_path(folder) as building:
            logging.disable_progress_bar()
            model.save_pretrained(building)
            tokenizer.save_pretrained(building)
    except OSError:
        if not folder.exists():  # else another process was first, with the same content
            raise
