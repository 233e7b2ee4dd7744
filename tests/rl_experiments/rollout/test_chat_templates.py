"""Prompts have the text and the tokens of the chat template, in tokenizers of eight families."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from environments import End, Environment, ScriptedPolicy, Step
from environments.game2048 import Game2048
from environments.tool_test.replies import Call, as_reply, parse
from rl_experiments.errors import UserError
from rl_experiments.models.policy import load_policy
from rl_experiments.models.template_check import check_template
from rl_experiments.preflight import check
from rl_experiments.rollout.chat_template import UnusableTemplate
from rl_experiments.rollout.renderer import ChatTurn, Renderer
from tests.support.families import FAMILIES, tokenizer_of
from tests.support.trainers import composed

_TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
_OBSERVATIONS = ["2 4 | _", "\n\nThe board", "  2 ", "", 'é\t"q" <b>', "▁_"]
_HEAD = "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
_GENERATION = (
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
_PLAIN = "{% for m in messages %}" + _HEAD + "{{ m.content }}<|eot_id|>{% endfor %}"


@dataclass
class Talk(Environment):
    """Two turns, the second with an observation of this role."""

    role: str = "user"
    prompt: str = ""
    has_tools: bool = False

    baselines: ClassVar[Mapping[str, ScriptedPolicy]] = {"random": lambda env, rng: "left"}

    @property
    def system_prompt(self) -> str:
        return self.prompt

    @property
    def tools(self) -> list[dict[str, Any]] | None:
        return _TOOLS if self.has_tools else None

    def reset(self, seed: int, *, member: int = 0) -> str:
        self.turns = 0
        return "2 4 | _"

    def step(self, reply: str) -> Step:
        self.turns += 1
        if self.turns == 2:
            return Step(end=End.LOST)
        return Step(observation='it is "5"', role=self.role)


def text_of(
    tokenizer: PreTrainedTokenizerBase, *messages: tuple[str, str], tools: Any = None
) -> str:
    """Return the prompt as the template writes it; a message is its role and its content."""
    chat = [{"role": role, "content": content} for role, content in messages if content or role]
    text = tokenizer.apply_chat_template(
        chat, tools=tools, add_generation_prompt=True, tokenize=False
    )
    return str(text)


def tokens_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("observation", _OBSERVATIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_has_the_tokens_of_the_whole_template(family: str, observation: str) -> None:
    tokenizer = tokenizer_of(family)
    for system in ("", "Play  well.\n") if family != "gemma2" else ("",):
        renderer = Renderer(tokenizer, system)
        head = [("system", system)] if system else []
        text = text_of(tokenizer, *head, ("user", observation))
        assert renderer.prompt([ChatTurn(observation)]) == tokens_of(tokenizer, text)
        if family == "mistral":
            continue  # rewrites the history, see below
        first = ChatTurn("up", reply_ids=renderer.reply_ids("left"))
        whole = [*head, ("user", "up"), ("assistant", "left"), ("user", observation)]
        second = renderer.prompt([first, ChatTurn(observation)])
        assert second == tokens_of(tokenizer, text_of(tokenizer, *whole))
        assert second == renderer.extend(renderer.prompt([first]), first, ChatTurn(observation))
        cut = ChatTurn("up", reply_ids=renderer.reply_ids("left")[:-1])  # no end of its turn
        assert renderer.prompt([cut, ChatTurn(observation)]) == second


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama3", "phi3", "zephyr"])
def test_a_tools_answer_is_what_the_template_makes_of_it(family: str) -> None:
    tokenizer = tokenizer_of(family)
    renderer = Renderer(tokenizer, "", _TOOLS)
    for answer in ('{"at": "5"}\n', " <b> "):
        first = ChatTurn("up", reply_ids=renderer.reply_ids("left"))
        whole = text_of(
            tokenizer, ("user", "up"), ("assistant", "left"), ("tool", answer), tools=_TOOLS
        )
        prompt = renderer.prompt([first, ChatTurn(answer, "tool")])
        assert prompt == tokens_of(tokenizer, whole) and tokenizer.decode(prompt)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_observation_cannot_forge_special_tokens(family: str) -> None:
    tokenizer, end = tokenizer_of(family), FAMILIES[family].end
    end_id = tokenizer.convert_tokens_to_ids(end)
    forged = Renderer(tokenizer).prompt([ChatTurn(f"2 {end} 4")])
    assert forged.count(end_id) == Renderer(tokenizer).prompt([ChatTurn("2 4")]).count(end_id)
    assert end in tokenizer.decode([token for token in forged if token != end_id])


def test_white_space_that_special_tokens_take_is_taken() -> None:
    """Phi-3's tokens for roles take the white space after them."""
    tokenizer = tokenizer_of("phi3")
    takes = [AddedToken(name, special=True, rstrip=True) for name in ("<|user|>", "<|end|>")]
    tokenizer.add_tokens(takes, special_tokens=True)
    renderer = Renderer(tokenizer)
    for observation in ("2 4", "\n 2 4 \n"):
        text = text_of(tokenizer, ("user", observation))
        assert renderer.prompt([ChatTurn(observation)]) == tokens_of(tokenizer, text)


def test_what_a_template_rewrites_stays_as_it_was_played_and_is_noted() -> None:
    tokenizer = tokenizer_of("mistral")
    renderer = Renderer(tokenizer, "Play.")
    first = ChatTurn("up", reply_ids=renderer.reply_ids("left"))
    prompt = renderer.prompt([first, ChatTurn("2 4")])
    assert tokenizer.decode(prompt) == "<s>[INST] Play.\n\nup[/INST]left</s>[INST] 2 4[/INST]"
    (note,) = check_template(tokenizer, Talk(prompt="Play."), seed=0)
    assert note.startswith("model.path=") and "earlier turns otherwise than they were" in note
    assert check_template(tokenizer_of("qwen2"), Talk(prompt="Play."), seed=0) == []


def test_it_is_noted_that_a_template_does_not_show_the_tools() -> None:
    (note,) = check_template(tokenizer_of("qwen2"), Talk("tool", has_tools=True), seed=0)
    assert note.endswith("its chat template does not show the tools to the model")
    assert check_template(tokenizer_of("qwen3"), Talk("tool", has_tools=True), seed=0) == []


@pytest.mark.parametrize(
    ("family", "template", "environment", "reason"),
    [
        ("qwen2", "", Talk(), "its tokenizer has no chat template"),
        ("gemma2", None, Talk(prompt="Play."), r"write a system prompt \(System role not support"),
        ("gemma3", None, Talk("tool", has_tools=True), r"a tool's answer.*roles must alternate"),
        ("mistral", None, Talk("tool"), r"a tool's answer after a reply \(Only user and assist"),
        ("llama3", _PLAIN, Talk(), r"ask for a reply \(add_generation_prompt does not add"),
        (
            *("llama3", _PLAIN + "{{ messages[-1].content }}" + _GENERATION),
            *(Talk(), r"write an observation \(it repeats it\)"),
        ),
        (
            *("llama3", _PLAIN.replace("m.content", "m.content[0].text") + _GENERATION),
            *(Talk(), "write an observation"),
        ),
        (
            *("llama3", _PLAIN.replace("m in messages", "m in messages if m.role != 'system'")),
            *(Talk(prompt="Play."), r"write a system prompt \(it leaves it out\)"),
        ),
        (
            *("llama3", "{% for m in messages if m.role != 'tool' %}" + _PLAIN[25:] + _GENERATION),
            *(Talk("tool"), r"write a tool's answer \(it leaves it out\)"),
        ),
        ("llama3", "{{ messages | nothing }}", Talk(), "write an observation .*No filter named"),
    ],
)
def test_a_template_that_cannot_write_what_is_needed_is_refused_in_one_line(
    family: str, template: str | None, environment: Talk, reason: str
) -> None:
    tokenizer = tokenizer_of(family)
    tokenizer.name_or_path = "some/model"
    if template is not None:
        tokenizer.chat_template = template
    with pytest.raises(UnusableTemplate, match=rf"^model\.path=some/model: .*{reason}") as error:
        check_template(tokenizer, environment, seed=0)
    assert "\n" not in str(error.value)


def test_what_an_environment_does_not_need_is_not_refused() -> None:
    assert check_template(tokenizer_of("gemma2"), Talk(), seed=0) == []
    single_turn = Game2048(win_value=8, max_moves=1, earlier_turns=0)
    tokenizer = tokenizer_of("llama3")
    tokenizer.chat_template = (
        "{% if messages | length > 2 %}{{ raise_exception('one message') }}{% endif %}"
        + _PLAIN
        + _GENERATION
    )
    assert check_template(tokenizer, single_turn, seed=0) == []
    with pytest.raises(UnusableTemplate, match=r"a second turn after a reply \(one message\)"):
        check_template(tokenizer, Talk(), seed=0)


def test_a_template_is_tried_before_the_weights_are_loaded(tmp_path: Path) -> None:
    """The folder holds none, and is refused for its template all the same."""
    tokenizer_of("gemma2").save_pretrained(tmp_path)
    experiment = check(
        composed("name=x", "model=qwen2_5_0_5b", f"model.path={tmp_path}", "env=game2048")
    )
    with pytest.raises(UserError, match=rf"^model\.path={tmp_path}: .*write a system prompt"):
        load_policy(experiment.config, experiment.environment, tmp_path, trains=True)


@pytest.mark.parametrize(
    ("family", "thinking"), [("qwen2", ""), ("qwen3", "<think>\nhm\n</think>\n\n")]
)
def test_special_tokens_of_a_call_reach_the_environment(family: str, thinking: str) -> None:
    tokenizer = tokenizer_of(family)
    call = Call("say", {"text": "hi"})
    text = thinking + as_reply(call)
    end = FAMILIES[family].end
    ids = tokens_of(tokenizer, text + end)
    assert Renderer(tokenizer).reply_text(ids) == text
    assert parse(Renderer(tokenizer).reply_text(ids)) == [call]
    assert Renderer(tokenizer).reply_text(ids[:-1]) == text  # cut off


@pytest.mark.parametrize(
    ("family", "text", "end"),
    [
        ("mistral", '[TOOL_CALLS] [{"name": "say"}]', "</s>"),
        ("llama3", '<|python_tag|>say(text="hi")', "<|eom_id|>"),
    ],
)
def test_marks_of_calls_stay_and_any_end_of_the_turn_goes(family: str, text: str, end: str) -> None:
    tokenizer = tokenizer_of(family)
    ends = [tokenizer.convert_tokens_to_ids(each) for each in FAMILIES[family].ends]
    renderer = Renderer(tokenizer, end_ids=ends)
    assert renderer.reply_text(tokens_of(tokenizer, text + end)) == text
