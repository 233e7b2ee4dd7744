"""The tiny model's tokenizer: one token for each word that its environment uses."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rl_experiments.rollout.types import Trajectory

_START, _END, _PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
# ChatML, as Qwen2.5 and Qwen3 write it for plain messages.
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# A word is an XML element around one word, a tag, name=value, or letters and digits with the signs
# before them.
_WORD = r"<\w+>\w+</\w+>|</?\w+>|\s?\w+=\w+|[^\w<]*\w+|[^\w<]+|<"


def word_tokenizer(texts: Sequence[str], *, word: str = _WORD) -> PreTrainedTokenizerFast:
    """Return a tokenizer in which each word of the texts is one token; all else is bytes.

    It is lossless: decoding gives back any text. `word` is the regular expression of a word.
    """
    words = Counter(match for text in texts for match in re.findall(word, text))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokens = [_PAD, _START, _END, *alphabet]
    for each in sorted(words):
        tokens.append("".join(piece for piece, _ in to_bytes.pre_tokenize_str(each)))
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    split = pre_tokenizers.Split(Regex(word), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=_END,
        pad_token=_PAD,
        additional_special_tokens=[_START],
        chat_template=_CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def texts_of(episodes: Sequence[Trajectory]) -> list[str]:
    """Return all texts of the episodes, and what the chat template writes between them."""
    texts = ["user\n", "assistant\n", "tool\n", "\n"]  # each message starts with its role
    for episode in episodes:
        texts.append(f"system\n{episode.system_prompt}")
        texts += [text for turn in episode.turns for text in (turn.observation, turn.reply)]
    return texts
