"""Environments for benchmarks: 2048 by tool calls, long and short replies, early ends."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import Any, ClassVar

from transformers.utils import get_json_schema

from environments import End, Environment, ScriptedPolicy, Step
from environments.game2048 import Game2048
from environments.game2048.game import DIRECTIONS
from environments.game2048.replies import as_reply
from environments.game2048.rewards import INVALID_REWARD

_CALL = re.compile(r"<tool_call>\s*(.+?)\s*</tool_call>", re.DOTALL)
_GUESS = re.compile(r"<guess>([a-z]{5})</guess>")
_GAME_OVER = "The game is over."

_WORDS = (
    "maybe the next word has one letter here and two there so that we can rule out what is left "
    "after each try if it fits or not then look at its vowels first last middle again since most "
    "of these were seen in an earlier guess which told us where they do belong"
)
_ANSWERS = (
    "crane slate pilot house mouse bread chair table light night train plant stone water river "
    "cloud grass sugar lemon mango peach grape berry onion olive bacon toast pasta pizza salad"
)


@dataclass
class ToolGame2048(Game2048):
    """2048 in which a move is a call of the tool `move`, and one more turn follows the game's end.

    It plays token for token like TRL's `environment_factory`, in which only a reply without a call
    ends an episode.
    """

    baselines: ClassVar[Mapping[str, ScriptedPolicy]] = {
        "random": lambda env, rng: _GAME_OVER if env.ending else as_call(rng.choice(DIRECTIONS))
    }

    @property
    def system_prompt(self) -> str:
        return (
            "You play 2048. Move left, right, up or down. Merge equal tiles until one is "
            f"{self.win_value}."
        )

    @property
    def tools(self) -> list[dict[str, Any]]:
        return [get_json_schema(TrlGame(self, member=0).move)]

    def reset(self, seed: int, *, member: int = 0) -> str:
        self.ending: Step | None = None  # the last step, once the game is over
        return super().reset(seed, member=member)

    def step(self, reply: str) -> Step:
        if self.ending:
            return replace(self.ending, reward=0.0)
        direction = _called_direction(reply)
        if direction is None:
            return super().step("")  # an unreadable reply ends the game
        # Qwen's templates put the answer of a tool into a user message.
        answer = f"<tool_response>\n{self.play(direction)}\n</tool_response>"
        return Step(observation=answer, reward=self.gained)

    def play(self, direction: str) -> str:
        """Move, and return the tool's answer."""
        if self.ending:
            return _GAME_OVER
        step = super().step(as_reply(direction))
        self.gained = step.reward
        if step.end is None:
            return step.observation
        self.ending = step
        return f"{step.observation}\n{_GAME_OVER}"

    def truncate(self) -> Step:
        return self.ending or super().truncate()


class TrlGame:
    """The same game as an environment of TRL, whose public methods become tools."""

    def __init__(self, game: ToolGame2048, *, member: int) -> None:
        self._game = game.fresh()
        self._member = member

    def reset(self, seed: int, **_: Any) -> str:
        self._moves = 0
        return self._game.reset(seed, member=self._member)

    def move(self, direction: str) -> str:
        """
        Slide all tiles.

        Args:
            direction: left, right, up or down
        """
        self._moves += 1
        return self._game.play(direction)

    def get_reward(self) -> float:
        if not self._moves:
            return INVALID_REWARD
        return float(self._game.truncate().episode_reward or 0.0)


def as_call(direction: str) -> str:
    """Write a reply that calls the tool `move`."""
    call = {"name": "move", "arguments": {"direction": direction}}
    return f"<tool_call>\n{json.dumps(call)}\n</tool_call>"


def _called_direction(reply: str) -> str | None:
    """Return the direction that the first call of a reply names, or None without one."""
    match = _CALL.search(reply)
    try:
        return str(json.loads(match[1])["arguments"]["direction"]) if match else None
    except (ValueError, LookupError, TypeError):
        return None


def _think_and_guess(env: WordGame, rng: Random) -> str:
    """Write a guess after a thought whose number of words is drawn on a logarithmic scale."""
    count = round(env.min_words * (env.max_words / env.min_words) ** rng.random())
    words = _WORDS.split()
    thought = " ".join(rng.choice(words) for _ in range(count))
    return f"<think>{thought}</think>\n<guess>{rng.choice(_ANSWERS.split())}</guess>"


@dataclass
class WordGame(Environment):
    """Six guesses as in Wordle, each after a thought; thoughts vary more than tenfold in length."""

    guesses: int = 6
    min_words: int = 1  # of a thought of the "random" baseline
    max_words: int = 240

    baselines: ClassVar[Mapping[str, ScriptedPolicy]] = {"random": _think_and_guess}

    @property
    def system_prompt(self) -> str:
        return (
            "Guess the word of five letters. Think, then reply with <guess>crane</guess>. "
            "2: the letter is in its place, 1: elsewhere, 0: nowhere."
        )

    def reset(self, seed: int, *, member: int = 0) -> str:
        self.answer = Random(f"words/{seed}").choice(_ANSWERS.split())
        self.made = 0
        return f"{self.guesses} guesses left"

    def step(self, reply: str) -> Step:
        """Take a guess; a reply without one uses up a guess."""
        self.made += 1
        match = _GUESS.search(reply)
        guess = match[1] if match else ""
        right = sum(a == b for a, b in zip(guess, self.answer, strict=False)) / 5
        left = self.guesses - self.made
        if guess == self.answer or not left:
            end = End.WON if guess == self.answer else End.LOST
            return Step(reward=right, end=end, metrics={"guesses": float(self.made)})
        marks = " ".join(map(str, _marks(guess, self.answer)))
        return Step(observation=f"{guess} {marks}\n{left} guesses left", reward=right)


def _marks(guess: str, answer: str) -> list[int]:
    return [2 if a == b else int(a in answer) for a, b in zip(guess, answer, strict=False)]


@dataclass
class EndsAtOnce(Game2048):
    """2048 in which every second block of `groups` training tasks ends after the first move.

    If each of two processes plays `groups` groups in a generation, all episodes of the second
    process end at once.
    """

    groups: int = 1

    def reset(self, seed: int, *, member: int = 0) -> str:
        self.is_short = (seed // 2) // self.groups % 2 == 1
        return super().reset(seed, member=member)

    def step(self, reply: str) -> Step:
        step = super().step(reply)
        if not self.is_short:
            return step
        return replace(step, reward=0.0, end=End.LOST, episode_reward=0.0)
