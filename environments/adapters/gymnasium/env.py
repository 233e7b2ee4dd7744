"""Environments of Gymnasium whose observations and actions are texts or numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar
from zlib import crc32

from environments.adapters.gymnasium.baselines import BASELINES, WITHOUT_TABLE
from environments.adapters.gymnasium.screens import plain
from environments.adapters.library import load, one_line, parameters_of, refuse_unknown_option
from environments.adapters.replies import as_element, last_element
from environments.adapters.rewards import bounded
from environments.protocol import End, Environment, ScriptedPolicy, Step
from environments.settings import did_you_mean, is_int, is_number, require

ACTION_NAMES: Mapping[str, tuple[str, ...]] = {
    "FrozenLake": ("left", "down", "right", "up"),
    "FrozenLake8x8": ("left", "down", "right", "up"),
    "CliffWalking": ("up", "right", "down", "left"),
    "CliffWalkingSlippery": ("up", "right", "down", "left"),
    "Taxi": ("south", "north", "east", "west", "pickup", "dropoff"),
    "Blackjack": ("stick", "hit"),
}


@dataclass
class GymnasiumText(Environment):
    """Play an environment of Gymnasium; each reply has one action."""

    id: str = "FrozenLake-v1"
    options: dict[str, Any] | None = None  # further arguments of gymnasium.make
    actions: list[str] = field(default_factory=list)  # names in order; []: known names or numbers
    task: str = ""  # text of the system prompt about the task; empty: its id
    max_steps: int = 100
    reward_scale: float = 1.0  # factor of all rewards
    clip: float = 1.0  # limit of the scaled reward of a turn, and of an episode, up and down
    win_above: float = 0.0  # an episode is won if its last reward, before scaling, is above this

    recommended_model: ClassVar[str] = "qwen2_5_3b"
    baselines: ClassVar[Mapping[str, ScriptedPolicy]] = BASELINES

    def __post_init__(self) -> None:
        require(is_int(self.max_steps, 1), "max_steps", self.max_steps, "a whole number >= 1")
        for name, minimum in (("reward_scale", 0.0), ("clip", 0.0), ("win_above", -1e6)):
            value = getattr(self, name)
            require(is_number(value, minimum, 1e6), name, value, f"from {minimum:.0f} to 1000000")
        self.gym = self._make()
        if not hasattr(self.gym.unwrapped, "P"):
            self.baselines = WITHOUT_TABLE  # type: ignore[misc]  # of this instance only
        space = self.gym.action_space
        kinds = (type(space).__name__, type(self.gym.observation_space).__name__)
        playable = kinds[0] in ("Discrete", "Text") and kinds[1] in ("Discrete", "Text", "Tuple")
        allowed = (
            "an environment whose actions and observations are texts or numbers, "
            f"not {kinds[0]} and {kinds[1]}"
        )
        require(playable, "id", self.id, allowed)
        self.first = int(space.start) if kinds[0] == "Discrete" else 0
        self.names: list[str] = []  # of the actions; empty if actions are texts
        if kinds[0] == "Discrete":
            count, base = int(space.n), self.id.rsplit("/", 1)[-1].rsplit("-v", 1)[0]
            known = self.actions or ACTION_NAMES.get(base, ())
            numbers = [str(self.first + index) for index in range(count)]
            self.names = [str(name).lower() for name in known or numbers]
            valid = len(set(self.names)) == count
            require(valid, "actions", self.actions, f"{count} different names, or []")

    @property
    def category(self) -> str:
        """The id of the environment."""
        return self.id

    @property
    def system_prompt(self) -> str:
        choice = f"one action of {', '.join(self.names)}" if self.names else "one action"
        example = self.names[0] if self.names else "your text"
        task = self.task or f"You play {self.id}."
        return f"{task} Each turn reply with {choice}, for example {as_element('action', example)}."

    def reset(self, seed: int, *, member: int = 0) -> str:
        """Begin in a state that depends on the seed alone; later chance depends on `member` too."""
        self.state, _ = self.gym.reset(seed=seed)
        seeding = _library().utils.seeding
        self.gym.unwrapped.np_random = seeding.np_random(crc32(f"{seed}/{member}".encode()))[0]
        self._steps = 0
        self._total = 0.0
        self._ended = False
        return self._observation()

    def step(self, reply: str) -> Step:
        self._require_running()
        action = self._action(reply)
        if action is None:
            return self._finish(End.INVALID, reward=-self.clip)
        self._steps += 1
        try:
            self.state, reward, terminated, truncated, _ = self.gym.step(action)
        except Exception:  # of any type: an environment may refuse a text of its own space
            return self._finish(End.INVALID, reward=-self.clip)
        gained = float(reward)
        scaled = bounded(self.reward_scale * gained, -self.clip, self.clip)
        self._total += bounded(self.reward_scale * gained, -1e6, 1e6)
        if terminated:
            won = gained > self.win_above
            return self._finish(End.WON if won else End.LOST, reward=scaled)
        if truncated or self._steps == self.max_steps:
            return self._finish(End.TRUNCATED, reward=scaled)
        return Step(observation=self._observation(), reward=scaled)

    def truncate(self) -> Step:
        self._require_running()
        return self._finish(End.TRUNCATED)

    def reply_from_input(self, text: str) -> str:
        """Accept the action alone, or a whole reply."""
        return text if "<action>" in text else as_element("action", text.strip())

    def _make(self) -> Any:
        """Make the environment, with the `ansi` screen if it has one."""
        library = _library()
        creator: Any = None
        try:
            spec = library.spec(self.id)  # raises if the id does not exist
            creator = spec.entry_point
            if isinstance(creator, str):
                creator = library.envs.registration.load_env_creator(creator)
            modes = getattr(creator, "metadata", {}).get("render_modes") or ()
            options = {"disable_env_checker": True, **(self.options or {})}
            if "ansi" in modes:
                options["render_mode"] = "ansi"
            environment = library.make(spec, **options)
        except Exception as error:
            refuse_unknown_option(error, self.id, lambda: parameters_of(creator))
            if "did you mean" not in str(error).lower() and self.id not in library.registry:
                hint = did_you_mean(self.id, library.registry)
                if hint:
                    raise ValueError(
                        f"env.id={self.id}: must be the name of an environment of Gymnasium{hint}"
                    ) from None
            raise ValueError(
                f"env.id={self.id}: must be an environment that gymnasium.make can make with "
                f"env.options={self.options} ({one_line(error)})"
            ) from None
        return environment

    def _action(self, reply: str) -> int | str | None:
        """Return the action that a reply names, or None if it names none."""
        text = last_element("action", reply)
        if text is None:
            return None
        if not self.names:
            return text if self.gym.action_space.contains(text) else None
        word = text.lower()
        numbers = [str(self.first + index) for index in range(len(self.names))]
        for words in (self.names, numbers):
            if word in words:
                return self.first + words.index(word)
        return None

    def _observation(self) -> str:
        if isinstance(self.state, str):
            return self.state
        state = self.state if isinstance(self.state, tuple) else (self.state,)
        text = f"State: {', '.join(str(part) for part in state)}"
        return f"{plain(str(self.gym.render()))}\n{text}" if self.gym.render_mode else text

    def _finish(self, end: End, *, reward: float = 0.0) -> Step:
        self._ended = True
        invalid = end is End.INVALID
        return Step(
            observation=self._observation(),
            reward=reward,
            end=end,
            episode_reward=reward if invalid else bounded(self._total, -self.clip, self.clip),
            metrics={
                "win": float(end is End.WON),
                "num_steps": float(self._steps),
                "invalid": float(invalid),
            },
        )


def _library() -> Any:
    return load("gymnasium", env="gymnasium", install="gymnasium==1.4.0")
