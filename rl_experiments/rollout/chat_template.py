"""What a chat template writes around the messages of an episode, learned by rendering it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rl_experiments.errors import UserError, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Contents that mark the places of the messages in a rendered template. Letters and digits are what
# no template escapes or strips.
_FIRST, _REPLY, _NEXT = "XfirstX0", "XreplyX0", "XnextX0"
# A content that shows what a template does to contents.
_RICH = " \n\"Rich\" <&> \\ '\u00e9' {x}\t\n "
_MAX_REASON_LENGTH = 300  # characters of a template's own words

Message = dict[str, str]


class UnusableTemplate(UserError):
    """A chat template cannot write what an episode needs."""


@dataclass(frozen=True)
class FramedText:
    """The text around an observation, and how the template writes the observation itself."""

    before: str
    after: str
    write: Callable[[str], str]


class ChatTemplate:
    """The chat template of a tokenizer, with a system prompt and tools.

    Each method raises an `UnusableTemplate`, one line with the template's own words, where the
    template does not write what it should.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        system_prompt: str,
        tools: list[dict[str, Any]] | None,
    ) -> None:
        self.tokenizer = tokenizer
        self.system_prompt = system_prompt
        self.tools = tools
        if not tokenizer.chat_template:
            raise self._unusable(
                "its tokenizer has no chat template; choose a model that was made to chat, or give "
                "a folder whose tokenizer has one"
            )

    @property
    def shows_tools(self) -> bool:
        """Whether the template writes the schemas of the tools; True if there are none."""
        first: list[Message] = [{"role": "user", "content": _FIRST}]
        return not self.tools or self._render(first) != self._render(first, tools=None)

    def rewrites_history(self, role: str) -> bool:
        """Return whether the template writes an earlier turn otherwise than it was played.

        Some move the system prompt, take thinking out, or put a space before a reply.
        """
        first = self._render([{"role": "user", "content": _FIRST}])
        return self._render(_chat(role, _NEXT)).partition(_REPLY)[0] != first

    def first(self) -> FramedText:
        """Return what stands around the first observation, up to the reply to it."""
        messages: list[Message] = [{"role": "user", "content": _FIRST}]
        text = self._render_or_refuse(messages, "an observation")
        if self.system_prompt and text == self._render(messages, system_prompt=""):
            raise self._cannot("write a system prompt", "it leaves it out")
        framed = self._frame(
            lambda content: self._render([{"role": "user", "content": content}]),
            _FIRST,
            "an observation",
        )
        self._check_generation_prompt(text)
        return framed

    def after_reply(self, role: str) -> FramedText:
        """Return what stands between a reply and the next one, around an observation."""
        name = "a tool's answer" if role == "tool" else "a second turn"
        if role not in ("user", "tool"):
            name = f"a message of the role {role}"
        # A template may move the system prompt to the last message, where each turn would repeat
        # it: it stays in the first one.
        context = self.system_prompt, self.tools
        if not self._keeps_history(*context) and self._keeps_history("", None):
            context = "", None

        def render(content: str) -> str:
            text = self._render(_chat(role, content), *context)
            if text.count(_REPLY) != 1:
                raise ValueError(f"it {'repeats' if _REPLY in text else 'leaves out'} the reply")
            return text.partition(_REPLY)[2]

        try:
            return self._frame(render, _NEXT, name)
        except UnusableTemplate:
            raise
        except Exception as error:
            raise self._cannot(f"write {name} after a reply", error) from None

    def chat(self, observation: str) -> str:
        """Return the whole text of the prompt for a first observation."""
        return self._render([{"role": "user", "content": observation}])

    def _frame(self, render: Callable[[str], str], mark: str, name: str) -> FramedText:
        """Split a rendering at the mark of the observation."""
        text = render(mark)
        if text.count(mark) != 1:
            how = "repeats it" if mark in text else "leaves it out"
            raise self._cannot(f"write {name}", f"it {how}")
        before, after = text.split(mark)
        try:
            rich = render(_RICH)
        except Exception:
            rich = ""  # what it cannot write is written as it is

        def write(observation: str) -> str:
            """Return what the template makes of an observation, for instance a JSON string."""
            whole = render(observation)
            fits = len(whole) >= len(before) + len(after)
            if fits and whole.startswith(before) and whole.endswith(after):
                return whole[len(before) : len(whole) - len(after)]
            return observation

        if rich in ("", before + _RICH + after):
            return FramedText(before, after, str)
        if rich == before + _RICH.strip() + after:
            return FramedText(before, after, str.strip)
        return FramedText(before, after, write)

    def _keeps_history(self, system_prompt: str, tools: list[dict[str, Any]] | None) -> bool:
        try:
            first = self._render([{"role": "user", "content": _FIRST}], system_prompt, tools)
            later = self._render(_chat("user", _NEXT), system_prompt, tools).partition(_REPLY)[0]
        except Exception:
            return True  # `after_reply` raises for it
        return later.startswith(first.rstrip()) or first.startswith(later.rstrip())

    def _check_generation_prompt(self, first: str) -> None:
        """Refuse a template that does not begin the reply, though its history shows a beginning."""
        messages: list[Message] = [{"role": "user", "content": _FIRST}]
        try:
            without = self._render(messages, generates=False)
            history = self._render(_chat("user", _NEXT)).partition(_REPLY)[0]
        except Exception:
            return  # a template that cannot write a second turn, which may not be needed
        if first == without and history.startswith(first) and history[len(first) :].strip():
            beginning = one_line(history[len(first) :])
            raise self._cannot(
                "ask for a reply", f"add_generation_prompt does not add {beginning!r}"
            )

    def _render_or_refuse(self, messages: list[Message], name: str) -> str:
        """Render the first prompt, or say which part of it the template cannot write."""
        try:
            return self._render(messages)
        except Exception as error:
            try:
                self._render(messages, system_prompt="")
            except Exception:
                raise self._cannot(f"write {name}", error) from None
            raise self._cannot("write a system prompt", error) from None

    def _render(
        self,
        messages: list[Message],
        system_prompt: str | None = None,
        tools: Any = ...,
        *,
        generates: bool = True,
    ) -> str:
        system_prompt = self.system_prompt if system_prompt is None else system_prompt
        if system_prompt:
            messages = [{"role": "system", "content": system_prompt}, *messages]
        rendered = self.tokenizer.apply_chat_template(
            messages,
            tools=self.tools if tools is ... else tools,
            add_generation_prompt=generates,
            tokenize=False,
        )
        return str(rendered)

    def _cannot(self, what: str, reason: object) -> UnusableTemplate:
        shown = one_line(str(reason) or type(reason).__name__)[:_MAX_REASON_LENGTH]
        return self._unusable(
            f"its chat template cannot {what} ({shown}); choose another model, or give a folder "
            "whose tokenizer has a chat template that can"
        )

    def _unusable(self, reason: str) -> UnusableTemplate:
        return UnusableTemplate(f"model.path={self.tokenizer.name_or_path}: {reason}")


def _chat(role: str, content: str) -> list[Message]:
    """Return a chat with a reply, and an observation of this role after it."""
    return [
        {"role": "user", "content": _FIRST},
        {"role": "assistant", "content": _REPLY},
        {"role": role, "content": content},
    ]
