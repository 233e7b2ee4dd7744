"""Games of TextArena for one player, played turn by turn."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any, ClassVar

from environments.adapters.library import (
    RandomState,
    load,
    one_line,
    parameters_of,
    refuse_unknown_option,
)
from environments.adapters.rewards import bounded
from environments.adapters.textarena.baselines import BASELINES
from environments.protocol import End, Environment, ScriptedPolicy, Step
from environments.replies import without_thinking
from environments.settings import did_you_mean, is_int, is_number, require

_MAX_ACTION_CHARACTERS = 2000  # the rest of a longer reply is cut off
_BRACKETED = re.compile(r"\[[^\[\]\n]{1,40}\]")


@dataclass
class TextArena(Environment):
    """Play one game; actions are in square brackets if its rules say so."""

    game: str = "GuessTheNumber-v0"
    options: dict[str, Any] | None = None  # further arguments of the game's class
    max_turns: int = 50
    clip: float = 1.0  # limit of the reward of an episode, up and down
    invalid_reward: float = 0.0  # highest reward of an episode that ends with an invalid action

    recommended_model: ClassVar[str] = "qwen2_5_3b"
    baselines: ClassVar[Mapping[str, ScriptedPolicy]] = BASELINES

    def __post_init__(self) -> None:
        require(is_int(self.max_turns, 1), "max_turns", self.max_turns, "a whole number >= 1")
        require(is_number(self.clip, 0, 1e6), "clip", self.clip, "from 0 to 1000000")
        penalty = self.invalid_reward
        require(is_number(penalty, -1e6, 1e6), "invalid_reward", penalty, "within 1000000")
        try:
            self._options = json.dumps(self.options or {}, sort_keys=True)
            _check(self.game, self._options)
        except _UnplayableError as error:
            specs = _library().envs.registration.ENV_REGISTRY
            if self.game not in specs:
                plain = [name for name in specs if not name.endswith(("-raw", "-train"))]
                hint = did_you_mean(self.game, plain)
                raise ValueError(
                    f"env.game={self.game}: must be the name of a game of TextArena{hint}"
                ) from None
            refuse_unknown_option(error, self.game, lambda: _options_of(self.game))
            raise ValueError(
                f"env.game={self.game}: must be a game of TextArena that one player can play "
                f"without network, with env.options={self.options} ({error})"
            ) from None
        self.shown: set[str] = set()  # the bracketed texts of the first observation

    @property
    def category(self) -> str:
        """The name of the game."""
        return self.game

    @property
    def system_prompt(self) -> str:
        return (
            "You play a game. Each turn reply with one action, in square brackets where the rules "
            "say so."
        )

    def reset(self, seed: int, *, member: int = 0) -> str:
        """Begin with a game that depends on the seed; later chance depends on `member` too."""
        self._game = _started(self.game, self._options, seed)
        self._random_state = RandomState(f"textarena/{seed}/{member}")
        self._turns = 0
        self._ended = False
        self.shown = set()
        return self._observe()

    def step(self, reply: str) -> Step:
        self._require_running()
        action = without_thinking(reply).strip()[:_MAX_ACTION_CHARACTERS]
        self._turns += 1
        try:
            with self._random_state.active():
                is_over, _ = self._game.step(action)
            observation = "" if is_over else self._observe()
        except Exception as error:  # of any type: games are rarely tested on arbitrary text
            return self._finish(End.INVALID, text=f"The game cannot take that: {one_line(error)}")
        if is_over:
            return self._game_over()
        if self._turns == self.max_turns:
            return self._finish(End.TRUNCATED, text=observation)
        return Step(observation=observation)

    def truncate(self) -> Step:
        self._require_running()
        return self._finish(End.TRUNCATED)

    def reply_from_input(self, text: str) -> str:
        """Accept the action without its brackets, or a whole reply."""
        return text if "[" in text else f"[{text.strip()}]"

    def _observe(self) -> str:
        """Return the messages since the last turn, without those of the policy."""
        with self._random_state.active():
            _, messages = self._game.get_observation()
        texts = [_text(message) for message in messages]
        observation = "\n".join(filter(None, texts)).strip() or "Your turn."
        if not self.shown:
            self.shown.update(_BRACKETED.findall(observation))
        return observation

    def _game_over(self) -> Step:
        rewards, info = self._game.close()
        outcome = info.get(0, {})
        earned = bounded((rewards or {}).get(0), -1e6, 1e6)
        reward = bounded(earned, -self.clip, self.clip)
        text = str(outcome.get("reason", ""))
        if outcome.get("invalid_move"):
            return self._finish(End.INVALID, reward=reward, text=text)
        return self._finish(End.WON if earned >= 1 else End.LOST, reward=reward, text=text)

    def _finish(self, end: End, *, reward: float = 0.0, text: str = "") -> Step:
        self._ended = True
        if end is End.INVALID:
            reward = bounded(min(reward, self.invalid_reward), -self.clip, self.clip)
        return Step(
            observation=text,
            reward=reward,
            end=end,
            metrics={
                "win": float(end is End.WON),
                "num_turns": float(self._turns),
                "invalid": float(end is End.INVALID),
            },
        )


def _text(message: tuple[Any, ...]) -> str:
    """Return the text of a message, which some games put after its kind; empty for an action."""
    _, text, kind = message
    if isinstance(kind, str):
        text, kind = kind, text
    return "" if getattr(kind, "name", "") == "PLAYER_ACTION" else str(text)


class _UnplayableError(Exception):
    """A game cannot be played here, for the reason in the message."""


@lru_cache(maxsize=64)
def _check(game: str, options: str) -> None:
    """Raise `_UnplayableError` unless the game starts and is for one player."""
    _library()
    try:
        started = _started(game, options, 0)
    except Exception as error:
        raise _UnplayableError(one_line(error)) from None
    if not isinstance(started.state, _library().SinglePlayerState):
        raise _UnplayableError("it is for several players")


def _options_of(game: str) -> list[str]:
    spec = _library().envs.registration.ENV_REGISTRY[game]
    module, _, name = str(spec.entry_point).partition(":")
    return parameters_of(getattr(import_module(module), name))


def _started(game: str, options: str, seed: int) -> Any:
    """Start a game, without the wrappers that repeat all earlier turns."""
    library = _library()
    with RandomState(f"textarena/{seed}").active():
        started = library.make(game, **json.loads(options))
        while isinstance(started, library.Wrapper):
            started = started.env
        # numpy takes seeds of 32 bits; odd seeds stay odd.
        started.reset(num_players=1, seed=seed % 2**32)
    return started


def _library() -> Any:
    return load("textarena", env="textarena", install="textarena==0.7.4")
