"""A reply ends with any token that model, tokenizer or chat template end a turn with."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from rl_experiments.models.tiny_tokenizer import word_tokenizer
from rl_experiments.rollout.renderer import ChatTurn, Renderer, RendererCache, end_of_turn

_TEXTS = ["user\n", "assistant\n", "tool\n", "\n", "up", "down", "go"]
# No token of its own ends a reply: the next message's role does, as in GLM-4.
_ROLE_ENDS = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def other_eos() -> PreTrainedTokenizerBase:
    """Return a tokenizer whose EOS is not what its template ends a turn with, as Gemma's."""
    tokenizer = word_tokenizer(_TEXTS)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.eos_token = "<|endoftext|>"
    return tokenizer


def role_ends() -> PreTrainedTokenizerBase:
    """Return a tokenizer in whose template the next role ends a reply."""
    tokenizer = word_tokenizer(_TEXTS)
    roles = ["<|user|>", "<|assistant|>", "<|tool|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": roles})
    tokenizer.eos_token, tokenizer.chat_template = "<|endoftext|>", _ROLE_ENDS
    return tokenizer


def history(renderer: Renderer, reply: list[int], role: str = "user") -> str:
    """Return the prompt of the second turn as text."""
    turns = [ChatTurn("go", reply_ids=reply), ChatTurn("down", role)]
    return str(renderer.tokenizer.decode(renderer.prompt(turns)))


def templates_text(tokenizer: PreTrainedTokenizerBase, role: str = "user") -> str:
    """Return the prompt of the second turn as the template writes it."""
    messages = [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": "up"},
        {"role": role, "content": "down"},
    ]
    return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))


def test_the_end_of_a_turn_is_the_templates() -> None:
    assert end_of_turn(word_tokenizer(_TEXTS)) == word_tokenizer(_TEXTS).eos_token_id
    tokenizer = other_eos()
    assert end_of_turn(tokenizer) == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert Renderer(tokenizer).reply_ids("up")[-1] == end_of_turn(tokenizer)
    tokenizer = role_ends()
    assert end_of_turn(tokenizer) == tokenizer.convert_tokens_to_ids("<|user|>")


def test_the_history_is_the_templates_however_a_reply_ended() -> None:
    tokenizer = other_eos()
    up, end = tokenizer("up")["input_ids"], end_of_turn(tokenizer)
    other = tokenizer.convert_tokens_to_ids("<|im_start|>")  # a third end, of the model's own
    renderer = RendererCache(tokenizer, end_ids=[other]).get("", None)
    for ending in ([end], [tokenizer.eos_token_id], [other], []):
        assert history(renderer, [*up, *ending]) == templates_text(tokenizer)


def test_a_role_that_ends_a_reply_is_not_repeated() -> None:
    tokenizer = role_ends()
    up = tokenizer("up")["input_ids"]
    renderer = Renderer(
        tokenizer, end_ids=tokenizer.convert_tokens_to_ids(["<|user|>", "<|tool|>"])
    )
    for role in ("user", "tool"):
        for ending in ("<|user|>", "<|tool|>", "<|endoftext|>"):
            reply = [*up, tokenizer.convert_tokens_to_ids(ending)]
            assert history(renderer, reply, role) == templates_text(tokenizer, role)
        assert history(renderer, up, role) == templates_text(tokenizer, role)


def test_the_end_of_a_turn_is_no_text_of_a_reply() -> None:
    for tokenizer in (other_eos(), role_ends()):
        renderer = Renderer(tokenizer)
        assert renderer.reply_text(renderer.reply_ids("up")) == "up"


def test_a_template_without_replies_has_no_end_of_turn() -> None:
    tokenizer = word_tokenizer(_TEXTS)
    for template in (
        "{{ messages[0].content }}",
        "{% if messages | length > 1 %}{{ raise_exception('one message') }}{% endif %}"
        "{{ messages[0].content }}",
    ):
        tokenizer.chat_template = template
        assert end_of_turn(tokenizer) is None
        assert Renderer(tokenizer).reply_ids("up")[-1] == tokenizer.eos_token_id
