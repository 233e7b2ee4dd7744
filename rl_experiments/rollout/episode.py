"""One environment in play, with the record of the episode; play by scripted policies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from random import Random

from environments import End, Environment, ScriptedPolicy, Step
from rl_experiments.errors import one_line
from rl_experiments.rollout import checks
from rl_experiments.rollout.renderer import ChatTurn, Renderer, RendererCache
from rl_experiments.rollout.types import EpisodeSpec, Trajectory, Turn

# An environment that takes more turns has no end. A game of 2048 to the tile 16384 takes 8,000.
MAX_TURNS = 10_000


class Episode:
    """A fresh copy of the environment, reset to a seed, and the trajectory that grows with it.

    An exception of the environment ends the episode as failed; it is not raised. So does a value
    of the environment that is not what the interface says, and an episode that does not end.
    """

    def __init__(self, environment: Environment, spec: EpisodeSpec) -> None:
        self.environment = environment
        self.trajectory = Trajectory(spec.seed, spec.member)
        self._chat_turns: list[ChatTurn] = []
        self._renderer: Renderer | None = None
        try:
            self.environment = environment = environment.fresh()
            observation = environment.reset(spec.seed, member=spec.member)
            self._observe(checks.text(observation, "the observation of reset"), "user")
            trajectory = self.trajectory
            trajectory.system_prompt = checks.text(
                environment.system_prompt or "", "the system prompt"
            )
            trajectory.tools = checks.tools(environment.tools)
            trajectory.category = checks.label(environment.category, "category")
            trajectory.task_key = checks.label(environment.task_key, "task_key")
            checks.earlier_turns(environment.earlier_turns_shown)
        except (Exception, SystemExit) as error:
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
        if not isinstance(text, str):
            self.fail(TypeError(f"the policy returned {text!r}: a reply is text"))
            return
        self.trajectory.turns[-1].reply = text
        last = self._chat_turns[-1]
        self._chat_turns[-1] = ChatTurn(last.observation, last.role, reply_ids)
        try:
            self._take(checks.step(self.environment.step(text)))
        except (Exception, SystemExit) as error:
            self.fail(error)

    def truncate(self) -> None:
        """End the episode before its present turn, which no longer fits the context."""
        self.trajectory.turns.pop()
        try:
            step = checks.step(self.environment.truncate())
            if step.end is None:
                raise ValueError("truncate returned a Step without an end")
            self._end(step)
        except (Exception, SystemExit) as error:
            self.fail(error)

    def fail(self, error: BaseException, *, source: str = "") -> None:
        """End the episode without a reward, because of an error; `source` says whose."""
        self.trajectory.end = End.FAILED
        self.trajectory.error = one_line(f"{source} {type(error).__name__}: {error}")

    def _take(self, step: Step) -> None:
        self.trajectory.turns[-1].reward = step.reward
        if step.end is None:
            if len(self.trajectory.turns) >= MAX_TURNS:
                raise RuntimeError(f"the environment has no end after {MAX_TURNS} turns")
            self._observe(step.observation, step.role)
        else:
            self._end(step)

    def _observe(self, observation: str, role: str) -> None:
        self.trajectory.turns.append(Turn(observation, role))
        self._chat_turns.append(ChatTurn(observation, role))

    def _end(self, step: Step) -> None:
        if step.end is End.FAILED:
            raise RuntimeError("the environment itself ended the episode as failed")
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
            take_scripted_turn(episode, policy, rng)
        yield episode.trajectory


def take_scripted_turn(episode: Episode, policy: ScriptedPolicy, rng: Random) -> None:
    """Reply as a scripted policy does; a policy that raises fails the episode."""
    try:
        reply = policy(episode.environment, rng)
    except (Exception, SystemExit) as error:
        episode.fail(error, source="the policy raises")
    else:
        episode.reply(reply)
