"""The 2048 environment: one move a turn, until the win value, a stuck board or a limit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import ClassVar

from environments.game2048 import rewards
from environments.game2048.baselines import BASELINES
from environments.game2048.game import (
    DIRECTIONS,
    Board,
    is_full,
    is_over,
    max_tile,
    move,
    new_board,
    render,
    spawn,
    tile_sum,
)
from environments.game2048.replies import Parser, as_reply, direction_from_input, parse
from environments.protocol import End, Environment, ScriptedPolicy, Step
from environments.settings import is_int, member, require


class Rules(StrEnum):
    """Which variant of the rules holds.

    The names are in lower case because OmegaConf reads an enum by its names.
    """

    # A tile appears after every move, even one that changes nothing; a full board ends the game.
    art = "art"
    # A move that changes nothing adds no tile; the game ends when no move can change the board.
    standard = "standard"


@dataclass
class Game2048(Environment):
    """Slide and merge tiles until one reaches `win_value`."""

    rules: Rules = Rules.standard
    win_value: int = 128
    size: int = 4  # number of rows, and of columns
    max_moves: int | None = None  # None: no limit
    parser: Parser = Parser.strict
    hints: bool = False  # whether a line below the board shows what each direction gains
    earlier_turns: int | None = None  # turns shown before the current board; None: all
    gain_reward: float = 1.0  # turn reward for merged tiles that sum to `win_value`
    illegal_penalty: float = 0.1  # taken from the turn reward for a move that changes nothing
    win_bonus: float = 1.0  # added to the turn reward of the winning move

    recommended_model: ClassVar[str] = "qwen2_5_3b"
    baselines: ClassVar[Mapping[str, ScriptedPolicy]] = BASELINES

    def __post_init__(self) -> None:
        self.rules = member(Rules, "rules", self.rules)
        self.parser = member(Parser, "parser", self.parser)
        win = self.win_value
        require(is_int(win, 8) and win & (win - 1) == 0, "win_value", win, "a power of two >= 8")
        require(is_int(self.size, 2), "size", self.size, "a whole number >= 2")
        for name, minimum in (("max_moves", 1), ("earlier_turns", 0)):
            value = getattr(self, name)
            valid = value is None or is_int(value, minimum)
            require(valid, name, value, f"a whole number >= {minimum}, or null")
        require(isinstance(self.hints, bool), "hints", self.hints, "true or false")
        for name in ("gain_reward", "illegal_penalty", "win_bonus"):
            value = getattr(self, name)
            valid = isinstance(value, int | float) and 0 <= value < math.inf
            require(valid, name, value, "a number >= 0")

    @property
    def earlier_turns_shown(self) -> int | None:
        return self.earlier_turns

    @property
    def system_prompt(self) -> str:
        prompt = (
            "You play 2048. Reply with one move, left, right, up or down, for example "
            f"<move>left</move>. Merge equal tiles until one is {self.win_value}."
        )
        if self.hints:
            prompt += " Below the board: what each direction gains."
        return prompt

    def reset(self, seed: int, *, member: int = 0) -> str:
        """Begin with a board that depends on the seed alone; later tiles depend on `member` too."""
        self.board = new_board(self.size, Random(f"2048/{seed}"))
        self.num_moves = 0
        self.illegal_moves = 0
        self._rng = Random(f"2048/{seed}/{member}")
        self._ended = False
        return self._observation()

    def step(self, reply: str) -> Step:
        self._require_running()
        direction = parse(reply, self.parser)
        if direction is None:
            return self._finish(End.INVALID, reward=rewards.INVALID_REWARD)
        board, gained, changed = move(self.board, direction)
        reward = self.gain_reward * gained / self.win_value
        if not changed:
            self.illegal_moves += 1
            reward -= self.illegal_penalty
        # There is a free cell: under art rules a full board has ended the game.
        if changed or self.rules is Rules.art:
            board = spawn(board, self._rng)
        self.board = board
        self.num_moves += 1
        end = self._end()
        if end is None:
            return Step(observation=self._observation(), reward=reward)
        return self._finish(end, reward=reward + self.win_bonus * (end is End.WON))

    def truncate(self) -> Step:
        self._require_running()
        return self._finish(End.TRUNCATED, reward=0.0)

    def reply_from_input(self, text: str) -> str:
        """Accept a direction, its first letters (l, r, u, d), an arrow, or a whole reply."""
        direction = direction_from_input(text)
        return as_reply(direction) if direction else text

    def _observation(self) -> str:
        board = render(self.board)
        return f"{board}\n{_hint_line(self.board)}" if self.hints else board

    def _end(self) -> End | None:
        if max_tile(self.board) >= self.win_value:
            return End.WON
        if is_full(self.board) if self.rules is Rules.art else is_over(self.board):
            return End.LOST
        return End.TRUNCATED if self.num_moves == self.max_moves else None

    def _finish(self, end: End, *, reward: float) -> Step:
        self._ended = True
        max_value, board_value = max_tile(self.board), tile_sum(self.board)
        episode_reward = rewards.INVALID_REWARD
        if end is not End.INVALID:
            episode_reward = rewards.episode_reward(
                max_value=max_value, board_value=board_value, win_value=self.win_value
            )
        return Step(
            observation=self._observation(),
            reward=reward,
            end=end,
            episode_reward=episode_reward,
            metrics={
                "max_value": float(max_value),
                "board_value": float(board_value),
                "num_moves": float(self.num_moves),
                "win": float(end is End.WON),
                "illegal_moves": float(self.illegal_moves),
            },
        )


def _hint_line(board: Board) -> str:
    """Return what each direction gains, as `left=4 right=none up=0 down=8`; none: nothing moves."""
    moves = [(direction, *move(board, direction)) for direction in DIRECTIONS]
    return " ".join(f"{d}={gained if changed else 'none'}" for d, _, gained, changed in moves)
