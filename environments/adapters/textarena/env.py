"""Games of TextArena for one player, turn by turn."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

from environments.adapters.library import Chance, load, one_line
from environments.adapters.rewards import bounded
from environments.adapters.textarena.baselines import BASELINES
from environments.protocol import End, Environment, ScriptedPolicy, Step
from environments.replies import without_thinking
from environments.settings import is_int, is_number, require

_MOST_CHARS = 2000  # of a reply that a game is given
_BRACKETED = re.compile(r"\[[^\[\]\n]{1,40}\]")


@dataclass
class TextArena(Environment):
    """Play one game; the actions are in square brackets, as its rules say."""

    game: str = "GuessTheNumber-v0"
    options: dict[str, Any] | None = None  # what the game's class takes
    max_turns: int = 50
    clip: float = 1.0  # the most that an episode earns or costs
    invalid_reward: float = 0.0  # the most for an episode that ends with an invalid action

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
            raise ValueError(
                f"env.game={self.game}: must be a game of TextArena that one player can play "
                f"without network, with env.options={self.options} ({error})"
            ) from None
        self.shown: set[str] = set()  # for scripted policies: what stood in brackets

    @property
    def category(self) -> str:
        return self.game

    @property
    def system_prompt(self) -> str:
        return (
            "You play a game. Each turn reply with one action, in square brackets where the rules "
            "say so."
        )

    def reset(self, seed: int, *, member: int = 0) -> str:
        """All members start from one game; the chance that comes later is each member's own."""
        self._game = _started(self.game, self._options, seed)
        self._chance = Chance(f"textarena/{seed}/{member}")
        self._turns = 0
        self._ended = False
        self.shown = set()
        return self._observe()

    def step(self, reply: str) -> Step:
        self._require_running()
        action = without_thinking(reply).strip()[:_MOST_CHARS]
        self._turns += 1
        try:
            with self._chance():
                is_over, _ = self._game.step(action)
            observation = "" if is_over else self._observe()
        except Exception as error:  # of any kind: few games were tried on every text
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
        return text if "[" in text else f"[{text.strip()}]"

    def _observe(self) -> str:
        """The messages since the last turn, less the policy's own."""
        with self._chance():
            _, messages = self._game.get_observation()
        texts = [_text(message) for message in messages]
        observation = "\n".join(filter(None, texts)).strip() or "Your turn."
        if not self.shown:
            self.shown.update(_BRACKETED.findall(observation))
        return observation

    def _game_over(self) -> Step:
        rewards, info = self._game.close()
        own = info.get(0, {})
        earned = bounded((rewards or {}).get(0), -1e6, 1e6)
        reward = bounded(earned, -self.clip, self.clip)
        text = str(own.get("reason", ""))
        if own.get("invalid_move"):
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
    """Some games give a message's kind before its text."""
    _, text, kind = message
    if isinstance(kind, str):
        text, kind = kind, text
    return "" if getattr(kind, "name", "") == "PLAYER_ACTION" else str(text)


class _UnplayableError(Exception):
    pass


@lru_cache(maxsize=64)
def _check(game: str, options: str) -> None:
    _library()
    try:
        started = _started(game, options, 0)
    except Exception as error:
        raise _UnplayableError(one_line(error)) from None
    if not isinstance(started.state, _library().SinglePlayerState):
        raise _UnplayableError("it is for several players")


def _started(game: str, options: str, seed: int) -> Any:
    """The game without the wrappers that repeat all earlier turns."""
    library = _library()
    with Chance(f"textarena/{seed}")():
        made = library.make(game, **json.loads(options))
        while isinstance(made, library.Wrapper):
            made = made.env
        made.reset(num_players=1, seed=seed % 2**32)  # odd stays odd: numpy takes 32 bits
    return made


def _library() -> Any:
    return load("textarena", env="textarena", install="textarena==0.7.4")
