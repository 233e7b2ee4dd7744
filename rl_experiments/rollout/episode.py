"""One environment in play, with the record of the episode; play by scripted policies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from random import Random

from environments import End, Environment, ScriptedPolicy, Step
from rl_experiments.rollout.renderer import ChatTurn, Renderer, RendererCache
from rl_experiments.rollout.types import EpisodeSpec, Trajectory, Turn


class Episode:
    """A fresh copy of the environment, reset to a seed, and the trajectory that grows with it.

    An exception of the environment ends the episode as failed; it is not raised.
    """

    def __init__(self, environment: Environment, spec: EpisodeSpec) -> None:
        self.environment = environment.fresh()
        self.trajectory = Trajectory(spec.seed, spec.member)
        self._chat_turns: list[ChatTurn] = []
        self._renderer: Renderer | None = None
        try:
            self._observe(self.environment.reset(spec.seed, member=spec.member), "user")
            self.trajectory.system_prompt = self.environment.system_prompt
            self.trajectory.tools = self.environment.tools
            self.trajectory.category = self.environment.category
            self.trajectory.task_key = self.environment.task_key
        except Exception as error:
            self.fail(error)

    @property
    def over(self) -> bool:
        return self.trajectory.end is not None

    def renderer(self, renderers: RendererCache) -> Renderer:
        """Return the renderer for the system prompt and the tools of this episode."""
        if self._renderer is None:
            trajectory = self.trajectory
            self._renderer = renderers.get(trajectory.system_prompt, trajectory.tools)
        return self._renderer

    def visible_turns(self) -> list[ChatTurn]:
        """Return the turns that the policy sees; the last is the present one, without a reply."""
        return visible_turns(self._chat_turns, self.environment)

    def reply(self, text: str, reply_ids: Sequence[int] = ()) -> None:
        """Take the present turn's reply and its tokens, and move the environment on."""
        self.trajectory.turns[-1].reply = text
        last = self._chat_turns[-1]
        self._chat_turns[-1] = ChatTurn(last.observation, last.role, reply_ids)
        try:
            self._take(self.environment.step(text))
        except Exception as error:
            self.fail(error)

    def truncate(self) -> None:
        """End the episode before its present turn, which no longer fits the context."""
        self.trajectory.turns.pop()
        try:
            self._end(self.environment.truncate())
        except Exception as error:
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """End the episode without a reward, because of an error."""
        self.trajectory.end = End.FAILED
        self.trajectory.error = f"{type(error).__name__}: {error}"

    def _take(self, step: Step) -> None:
        self.trajectory.turns[-1].reward = step.reward
        if step.end is None:
            self._observe(step.observation, step.role)
        else:
            self._end(step)

    def _observe(self, observation: str, role: str) -> None:
        self.trajectory.turns.append(Turn(observation, role))
        self._chat_turns.append(ChatTurn(observation, role))

    def _end(self, step: Step) -> None:
        total = sum(turn.reward for turn in self.trajectory.turns)
        self.trajectory.end = step.end
        self.trajectory.metrics = dict(step.metrics)
        self.trajectory.reward = total if step.episode_reward is None else step.episode_reward


def visible_turns(turns: list[ChatTurn], environment: Environment) -> list[ChatTurn]:
    """Return the last turn, and as many before it as the environment shows to the policy."""
    earlier = environment.earlier_turns_shown
    return turns if earlier is None else turns[-1 - earlier :]


def play_scripted(
    environment: Environment, policy: ScriptedPolicy, specs: Iterable[EpisodeSpec], *, name: str
) -> Iterable[Trajectory]:
    """Yield episodes of a scripted policy; each has the random stream (name, seed, member)."""
    for spec in specs:
        episode = Episode(environment, spec)
        rng = Random(f"{name}/{spec.seed}/{spec.member}")
        while not episode.over:
            episode.reply(policy(episode.environment, rng))
        yield episode.trajectory
