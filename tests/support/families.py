"""Tiny models of eight families, each with a tokenizer and a chat template of its family's kind.

What differs between families is kept: how words are marked, which token ends a turn, what the
generation config says, where a system prompt goes, what is done with tools and with thinking.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

_CORPUS = [
    "Play the game. Answer with one move: left, right, up or down.",
    "system\nuser\nassistant\ntool\nmodel\nipython\n",
    '{"name": "look", "arguments": {"at": "board"}}',
    "2 4 8 16 _ _ 32 | 64\n_ _ 2 4 | 8\nThe board is full, the end.",
    "<think>\nThe left side is open.\n</think>\n\nleft",
]

_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Shows the tools in the system's turn, answers of tools in the user's, and no earlier thinking.
_QWEN3 = (
    "{% if tools %}<|im_start|>system\n{% if messages[0].role == 'system' %}"
    "{{ messages[0].content }}\n\n{% endif %}# Tools\n{{ tools | tojson }}<|im_end|>\n"
    "{% elif messages[0].role == 'system' %}<|im_start|>system\n{{ messages[0].content }}"
    "<|im_end|>\n{% endif %}{% for m in messages %}{% if m.role == 'user' %}<|im_start|>user\n"
    "{{ m.content }}<|im_end|>\n{% elif m.role == 'tool' %}<|im_start|>user\n<tool_response>\n"
    "{{ m.content }}\n</tool_response><|im_end|>\n{% elif m.role == 'assistant' %}"
    "<|im_start|>assistant\n{{ m.content.split('</think>')[-1].lstrip('\n') }}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Trims every message, and writes the answer of a tool as JSON, as Llama 3.1 does.
_LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'tool' %}<|start_header_id|>ipython"
    "<|end_header_id|>\n\n{{ m.content | tojson }}<|eot_id|>{% else %}<|start_header_id|>"
    "{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
_GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}SYSTEM{% else %}{% set first = '' %}"
    "{% set rest = messages %}{% endif %}{% for m in rest %}{% if m.role == 'tool' %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/...') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ (first if loop.first else '') + m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
_PHI3 = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
_ZEPHYR = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
# Puts the system prompt before the last message, and a space before each reply.
_MISTRAL = (
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}"
    "{% set rest = messages[1:] %}{% else %}{% set rest = messages %}{% endif %}{{ bos_token }}"
    "{% for m in rest %}{% if m.role == 'user' %}[INST] {% if loop.last and system is defined %}"
    "{{ system }}\n\n{% endif %}{{ m.content }}[/INST]{% elif m.role == 'assistant' %}"
    " {{ m.content }}{{ eos_token }}{% else %}"
    "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
_SIZES = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.3,
    "max_position_embeddings": 1024,
}


@dataclass(frozen=True)
class Family:
    """What makes models of a family."""

    config: str  # transformers' class
    template: str
    marks: str  # of words: "bytes", or of SentencePiece's kind "none", "each" piece, "first" piece
    specials: tuple[str, ...]
    end: str  # of a turn
    ends: tuple[str, ...]  # in the generation config
    tokens: dict[str, str | None]  # the tokenizer's bos, eos, pad and unk
    settings: dict[str, Any]


def _family(
    config: str,
    template: str,
    marks: str,
    *,
    specials: str,
    end: str,
    ends: str,
    eos: str | None = None,
    pad: str | None = None,
    **settings: Any,
) -> Family:
    """Return a family; special tokens and ends are names with spaces between them."""
    names = specials.split()
    bos = next((each for each in ("<bos>", "<s>", "<|begin_of_text|>") if each in names), None)
    unk = "<unk>" if "<unk>" in names else None
    tokens = {"bos_token": bos, "eos_token": eos or end, "pad_token": pad, "unk_token": unk}
    return Family(config, template, marks, tuple(names), end, tuple(ends.split()), tokens, settings)


_IM = "<|endoftext|> <|im_start|> <|im_end|>"
_GEMMA_SPECIALS = "<pad> <eos> <bos> <unk> <start_of_turn> <end_of_turn>"
_SYSTEM_FIRST = "{% set first = messages[0].content + '\n\n' %}{% set rest = messages[1:] %}"
FAMILIES: dict[str, Family] = {
    "qwen2": _family(
        "Qwen2Config",
        _CHATML,
        "bytes",
        specials=f"{_IM} <tool_call> </tool_call>",
        end="<|im_end|>",
        ends="<|im_end|> <|endoftext|>",
        pad="<|endoftext|>",
        tie_word_embeddings=True,
    ),
    "qwen3": _family(
        "Qwen3Config",
        _QWEN3,
        "bytes",
        specials=f"{_IM} <think> </think>",
        end="<|im_end|>",
        ends="<|im_end|> <|endoftext|>",
        pad="<|endoftext|>",
        tie_word_embeddings=True,
        head_dim=8,
    ),
    "llama3": _family(
        "LlamaConfig",
        _LLAMA3,
        "bytes",
        specials=(
            "<|begin_of_text|> <|end_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|> "
            "<|eom_id|> <|python_tag|>"
        ),
        end="<|eot_id|>",
        ends="<|end_of_text|> <|eom_id|> <|eot_id|>",
        tie_word_embeddings=True,
    ),
    "gemma2": _family(
        "Gemma2Config",
        _GEMMA.replace("SYSTEM", "{{ raise_exception('System role not supported') }}"),
        "none",
        specials=_GEMMA_SPECIALS,
        end="<end_of_turn>",
        ends="<eos> <end_of_turn>",
        eos="<eos>",
        pad="<pad>",
        head_dim=8,
        query_pre_attn_scalar=8,
    ),
    "gemma3": _family(
        "Gemma3TextConfig",
        _GEMMA.replace("SYSTEM", _SYSTEM_FIRST),
        "none",
        specials=_GEMMA_SPECIALS,
        end="<end_of_turn>",
        ends="<eos> <end_of_turn>",
        eos="<eos>",
        pad="<pad>",
        head_dim=8,
        sliding_window=24,
    ),
    "phi3": _family(
        "Phi3Config",
        _PHI3,
        "each",
        specials=(
            "<unk> <s> </s> <|endoftext|> <|assistant|> <|system|> <|end|> <|user|> <|tool|> "
            "<think> </think>"
        ),
        end="<|end|>",
        ends="<|endoftext|> <|assistant|> <|end|>",
        eos="<|endoftext|>",
        pad="<|endoftext|>",
        tie_word_embeddings=False,
    ),
    "zephyr": _family(
        "LlamaConfig",
        _ZEPHYR,
        "each",
        specials="<unk> <s> </s>",
        end="</s>",
        ends="</s>",
        tie_word_embeddings=False,
    ),
    "mistral": _family(
        "MistralConfig",
        _MISTRAL,
        "first",
        specials="<unk> <s> </s> [INST] [/INST] [TOOL_CALLS]",
        end="</s>",
        ends="</s>",
        tie_word_embeddings=False,
        sliding_window=16,
    ),
}


def tokenizer_of(name: str, *, thinks: bool = False) -> PreTrainedTokenizerFast:
    """Return a family's tokenizer; where it thinks, each reply begins with a tag in its prompt."""
    family = FAMILIES[name]
    template = family.template
    if thinks:  # as DeepSeek's models, which are of several families
        template += "{% if add_generation_prompt %}<think>\n{% endif %}"
    return _wrap(family, template)


def save_family(name: str, folder: Path, *, thinks: bool = False) -> Path:
    """Write a random model of the family with its tokenizer to a folder; always the same one."""
    family, tokenizer = FAMILIES[name], tokenizer_of(name, thinks=thinks)
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in (*family.ends, family.end)}
    config = getattr(transformers, family.config)(
        **{**_SIZES, **family.settings},
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    model: PreTrainedModel = transformers.AutoModelForCausalLM.from_config(
        config, dtype=torch.float32
    )
    # As models come: sampling settings of their own, which are none of training's.
    model.generation_config = GenerationConfig(
        eos_token_id=[ids[each] for each in family.ends],
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        do_sample=True,
        repetition_penalty=1.1,
        top_k=20,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _wrap(family: Family, template: str) -> PreTrainedTokenizerFast:
    named = set(family.tokens.values())
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained(family.marks, family.specials)),
        **family.tokens,
        additional_special_tokens=[each for each in family.specials if each not in named],
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )


@cache
def _trained(marks: str, specials: tuple[str, ...]) -> str:
    """Return a tokenizer as JSON: byte-level BPE, or BPE as SentencePiece makes it."""
    if marks == "bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        extra: list[str] = []
    else:
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        space = normalizers.Replace(" ", "▁")
        if marks == "first":
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        else:
            prepend = [normalizers.Prepend("▁")] if marks == "each" else []
            tokenizer.normalizer = normalizers.Sequence([*prepend, space])
        undone: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        if marks != "none":
            undone.append(decoders.Strip(" ", 1, 0))
        tokenizer.decoder = decoders.Sequence(undone)
        alphabet = sorted({*"".join(_CORPUS).replace(" ", "▁"), "▁"})
        extra = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        initial_alphabet=alphabet,
        special_tokens=[*specials, *extra],
        max_token_length=8,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    made = json.loads(tokenizer.to_str())
    made["added_tokens"] = [each for each in made["added_tokens"] if each["content"] in specials]
    return json.dumps(made)
