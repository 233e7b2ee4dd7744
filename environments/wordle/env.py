"""The Wordle environment: one guess a turn, until the secret or the last guess."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from environments.protocol import End, Environment, ScriptedPolicy, Step, is_evaluation_seed
from environments.settings import is_int, is_number, require
from environments.wordle import replies, rewards
from environments.wordle.baselines import BASELINES
from environments.wordle.data import word_list
from environments.wordle.game import LENGTH, SOLVED, Board, feedback, render
from environments.wordle.replies import as_reply, parse

_MAX_WORDS_IN_PROMPT = 40  # a longer list is not part of the prompt


@dataclass
class Wordle(Environment):
    """Guess a secret word of five letters."""

    words: str = "english"  # english, tiny, or a file with one word a line
    held_out: float = 0.2  # share of the words that are secrets of evaluation only; 0: no split
    guesses: int = 6
    any_letters: bool = False  # whether any five letters are a guess, not only words of the list
    forgiven: int = 1  # invalid replies in a row that cost no guess; one more ends the game
    think: bool = True  # whether the prompt asks for a <think> element before the guess
    earlier_turns: int | None = None  # turns shown before the current board; None: all
    exact_weight: float = 1.0  # reward for the secret
    partial_weight: float = 1.0  # reward for green and yellow letters
    turn_weight: float = 1.0  # reward for few turns
    format_weight: float = 0.2  # reward for replies in the format

    recommended_model: ClassVar[str] = "qwen2_5_0_5b"
    baselines: ClassVar[Mapping[str, ScriptedPolicy]] = BASELINES

    def __post_init__(self) -> None:
        for name in ("any_letters", "think"):
            value = getattr(self, name)
            require(isinstance(value, bool), name, value, "true or false")
        for name, minimum in (("guesses", 1), ("forgiven", 0), ("earlier_turns", 0)):
            value = getattr(self, name)
            valid = is_int(value, minimum, 100) or (name == "earlier_turns" and value is None)
            null = ", or null" if name == "earlier_turns" else ""
            require(valid, name, value, f"a whole number from {minimum} to 100{null}")
        for name in ("exact_weight", "partial_weight", "turn_weight", "format_weight"):
            value = getattr(self, name)
            require(is_number(value, 0, 100), name, value, "from 0 to 100")
        share = self.held_out
        require(is_number(share, 0) and share < 1, "held_out", share, "from 0 to below 1")
        self.list = word_list(self.words, self.held_out)

    @property
    def earlier_turns_shown(self) -> int | None:
        return self.earlier_turns

    @property
    def system_prompt(self) -> str:
        words = self.list.words
        example = "crane" if "crane" in self.list.known else words[0]
        form = f"<guess>{example}</guess>"
        if self.think:
            form = f"<think>your thoughts</think>\n{form}"
        prompt = (
            f"You play Wordle: find the secret word of {LENGTH} letters in {self.guesses} guesses. "
            "Each letter of a guess is marked: G, in its place; Y, elsewhere in the word; X, not "
            f"in the word, or not once more. Reply in this form:\n{form}"
        )
        if len(words) > _MAX_WORDS_IN_PROMPT:
            return prompt
        return f"{prompt}\nThe words: {' '.join(words)}"

    @property
    def category(self) -> str:
        """`repeated` if the secret has a letter more than once, else `distinct`."""
        return "distinct" if len(set(self.secret)) == LENGTH else "repeated"

    @property
    def task_key(self) -> str:
        """The secret."""
        return self.secret

    def reset(self, seed: int, *, member: int = 0) -> str:
        secrets = self.list.evaluation if is_evaluation_seed(seed) else self.list.training
        self.secret = secrets[seed // 2 % len(secrets)]
        self.board: Board = ()
        self.turns = 0
        self.invalid_replies = 0
        self._invalid_in_a_row = 0
        self._well_formed = 0
        self._ended = False
        return self._observation()

    def step(self, reply: str) -> Step:
        self._require_running()
        self.turns += 1
        word = parse(reply)
        problem = self._problem(word)
        is_well_formed = replies.is_well_formed(reply, think=self.think)
        self._well_formed += is_well_formed
        penalty = 0.0 if is_well_formed and not problem else self.format_weight
        if problem or word is None:
            self.invalid_replies += 1
            self._invalid_in_a_row += 1
            if self._invalid_in_a_row > self.forgiven:
                return self._finish(End.INVALID, reward=-penalty)
            return Step(observation=self._observation(problem), reward=-penalty)
        self._invalid_in_a_row = 0
        marks = feedback(self.secret, word)
        reward = self._turn_reward(marks) - penalty
        self.board = (*self.board, (word, marks))
        if marks == SOLVED:
            return self._finish(End.WON, reward=reward)
        if len(self.board) == self.guesses:
            return self._finish(End.LOST, reward=reward)
        return Step(observation=self._observation(), reward=reward)

    def truncate(self) -> Step:
        self._require_running()
        return self._finish(End.TRUNCATED, reward=0.0)

    def reply_from_input(self, text: str) -> str:
        """Accept the word alone, or a whole reply."""
        word = text.strip().lower()
        return as_reply(word, think=self.think) if word.isalpha() else text

    def _problem(self, word: str | None) -> str:
        """Return why a guess does not count, or an empty string if it does.

        It quotes at most five letters of the reply.
        """
        if word is None:
            return "No guess was found. Reply in the form asked for."
        if len(word) != LENGTH or not (word.isascii() and word.isalpha()):
            return f"A guess is one word of {LENGTH} letters, a to z."
        if not self.any_letters and word not in self.list.known:
            return f"{word} is not in the word list."
        return ""

    def _observation(self, problem: str = "") -> str:
        left = self.guesses - len(self.board)
        # If all turns are shown, earlier marks are in the observations of earlier turns.
        shown = self.board[-1:] if self.earlier_turns is None else self.board
        lines = (problem, render(shown), f"{left} {'guess' if left == 1 else 'guesses'} left")
        return "\n".join(filter(None, lines))

    def _turn_reward(self, marks: str) -> float:
        """Return the reward of a turn. Letters pay only what exceeds the best guess before it."""
        best = max((rewards.partial(earlier) for _, earlier in self.board), default=0.0)
        return (
            self.exact_weight * rewards.exact(marks)
            + self.partial_weight * max(0.0, rewards.partial(marks) - best)
            + self.turn_weight * rewards.turn_bonus(marks, turns=self.turns)
        )

    def _finish(self, end: End, *, reward: float) -> Step:
        self._ended = True
        marks = self.board[-1][1] if self.board else ""
        # Letters do not pay if an invalid reply ends the episode.
        paid = "" if end is End.INVALID else marks
        well_formed = rewards.well_formed_share(self._well_formed, turns=self.turns)
        return Step(
            observation=f"{render(self.board)}\nThe word is {self.secret}.".lstrip(),
            reward=reward,
            end=end,
            episode_reward=self.exact_weight * rewards.exact(paid)
            + self.partial_weight * rewards.partial(paid)
            + self.turn_weight * rewards.turn_bonus(paid, turns=self.turns)
            + self.format_weight * well_formed,
            metrics={
                "win": float(end is End.WON),
                "num_guesses": float(len(self.board)),
                "green": float(marks.count("G")),
                "yellow": float(marks.count("Y")),
                "invalid_replies": float(self.invalid_replies),
                "format": well_formed,
            },
        )
