"""Tasks of the benchmarks: 2048 by tool calls, replies of very different lengths, early ends."""

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
    """2048 in which a move is a call of the tool `move`; a last turn answers the game's end.

    As TRL's `environment_factory` plays it, token for token: there only a reply without a call ends
    an episode.
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
        self.ending: Step | None = None  # once the game is over
        return super().reset(seed, member=member)

    def step(self, reply: str) -> Step:
        if self.ending:
            return replace(self.ending, reward=0.0)
        direction = _called(reply)
        if direction is None:
            return super().step("")  # which cannot be read
        # Qwen's templates put a tool's answer into a message of the user's.
        answer = f"<tool_response>\n{self.play(direction)}\n</tool_response>"
        return Step(observation=answer, reward=self.gained)

    def play(self, direction: str) -> str:
        """The tool's answer to one call."""
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
    """The same game as TRL drives it: public methods are tools."""

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
    call = {"name": "move", "arguments": {"direction": direction}}
    return f"<tool_call>\n{json.dumps(call)}\n</tool_call>"


def _called(reply: str) -> str | None:
    """The direction of the first call in a reply."""
    match = _CALL.search(reply)
    try:
        return str(json.loads(match[1])["arguments"]["direction"]) if match else None
    except (ValueError, LookupError, TypeError):
        return None


def _think_and_guess(env: WordGame, rng: Random) -> str:
    """As many words of thought as a logarithmic scale gives: few and many as often as not."""
    count = round(env.least_words * (env.most_words / env.least_words) ** rng.random())
    words = _WORDS.split()
    thought = " ".join(rng.choice(words) for _ in range(count))
    return f"<think>{thought}</think>\n<guess>{rng.choice(_ANSWERS.split())}</guess>"


@dataclass
class WordGame(Environment):
    """Wordle in shape: six guesses, each after a thought whose length varies more than tenfold."""

    guesses: int = 6
    least_words: int = 1  # of a thought, in the "random" baseline
    most_words: int = 240

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
        """A reply without a guess is a guess lost."""
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
    """2048 in which every second run of `groups` training seeds ends after its first move.

    With as many groups a process in a generation, these are all the episodes of the second one.
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
