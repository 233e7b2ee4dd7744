"""Whether an environment's reward is one that training can be trusted with.

Policies without skill play the same seeds as the scripted baselines, without a model. Faults are:

- the oracle (else the best baseline) does not surely earn more than "random", or a policy without
  skill surely earns more than half of the way from "random" to the oracle. Sure is what the 95 %
  interval of the mean difference over the seeds says; where it does not, there is a note;
- no group of random players has rewards that vary, or its members do not get the same task;
- a reward that is not finite or beyond 100; a reply that raises, or takes over 50 ms of the CPU
  each time; a seed that differs when it is played again;
- a baseline's episode without an end. Policies without skill are cut after as many turns as the
  longest episode of those, as a limit on tokens would cut them; what they have by then counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from environments import Environment, is_evaluation_seed
from rl_experiments.audit.play import Policy, Result, TimedEpisode, by_script, play, replay
from rl_experiments.audit.policies import always, common_replies, unskilled
from rl_experiments.config.schema import Credit
from rl_experiments.errors import UserError, one_line
from rl_experiments.rollout.advantages import rewards_vary
from rl_experiments.rollout.episodes import EpisodeSpec, Trajectory
from rl_experiments.stats import intervals
from rl_experiments.stats.intervals import Estimate, format_estimate

_LEAST = 20  # episodes, for an interval to say something
_MOST_TURNS = 5000  # of a baseline
_LEAST_TURNS = 20  # of a policy without skill, before it is cut
_MOST_SECONDS = 0.05  # of the CPU, for a step
_MOST_REWARD = 100.0
_SHARE = 0.5  # of the way from random to the oracle
_MEMBERS = 4
_GROUPS = 25
_REPLAYED = 20  # episodes
_ROUNDING = 1e-9
_DISTINCT = 10  # first observations that tell tasks apart


class EnvironmentAudit:
    """What an environment does under all the policies; `notes` and `faults` are lines."""

    def __init__(self, environment: Environment, num_examples: int) -> None:
        if num_examples < _LEAST:
            raise UserError(f"num_examples={num_examples}: audit needs at least {_LEAST}")
        self.environment = environment
        self.tasks = [
            EpisodeSpec(seed) for seed in range(num_examples)
        ]  # the even ones are training's
        self.results: dict[str, Result] = {}
        self.notes: list[str] = []
        self.found: dict[str, list[str]] = {}  # where each kind of fault is
        self.baselines = {
            name: self._play(name, partial(by_script, script), self.tasks, turns=_MOST_TURNS)
            for name, script in environment.baselines.items()
        }
        self.oracle = self._choose_oracle()
        self._check_tasks()
        self._check_groups()
        self._check_replays()
        # Where the baselines find no end, the others would not either, and take long.
        if not any(result.num_cut for result in self.results.values()):
            self._play_unskilled()
        self._check_skill()

    @property
    def faults(self) -> list[str]:
        return [
            f"{what}: {where[0]}" + f" (and {len(where) - 1} more)" * (len(where) > 1)
            for what, where in self.found.items()
        ]

    def _play(
        self, name: str, policy: Policy, tasks: Sequence[EpisodeSpec], *, turns: int
    ) -> list[Trajectory]:
        """The policy's episodes; it stops where the environment is found slow or endless."""
        result = self.results[name] = Result()
        trajectories = []
        for task in tasks:
            played = play(self.environment, policy, task, name=name, turns=turns)
            trajectories.append(played.trajectory)
            result.add(played)
            self._check_rewards(played, f"{name} at seed {task.seed}")
            self._check_end(played, f"{name} at seed {task.seed}")
            is_slow = self._check_time(played, f"{name} at seed {task.seed}")
            if is_slow or len(played.trajectory.turns) == _MOST_TURNS:
                break
        return trajectories

    def _check_rewards(self, played: TimedEpisode, where: str) -> None:
        strange = [reward for reward in played.rewards if not math.isfinite(reward)]
        great = [reward for reward in played.rewards if _MOST_REWARD < abs(reward) < math.inf]
        for what, some in (("a reward is not finite", strange), ("a reward is too great", great)):
            if some:
                self._fault(what, f"{where}, {max(some, key=abs):g}")

    def _check_end(self, played: TimedEpisode, where: str) -> None:
        trajectory = played.trajectory
        if trajectory.error:
            reply = f", to {_short(trajectory.turns[-1].reply)}" if trajectory.turns else ""
            self._fault("a play fails", f"{where}{reply}, {trajectory.error}")
        elif trajectory.end is None:
            self._fault("truncate() does not end an episode", where)
        if played.is_cut and len(trajectory.turns) == _MOST_TURNS:
            self._fault(f"an episode has no end in {_MOST_TURNS} turns", where)

    def _check_time(self, played: TimedEpisode, where: str) -> bool:
        """Whether a step is slow each time; the first time may load something."""
        seconds = played.seconds
        if seconds > _MOST_SECONDS:
            seconds = min(seconds, replay(self.environment, played.trajectory).seconds)
        if seconds <= _MOST_SECONDS:
            return False
        longest = max(len(turn.reply) for turn in played.trajectory.turns)
        took = f"replies of up to {longest} characters, {seconds * 1000:.0f} ms"
        self._fault("a step is slow", f"{where}, {took}")
        return True

    def _choose_oracle(self) -> str:
        if "oracle" in self.baselines:
            return "oracle"
        others = [name for name in self.baselines if name != "random"]
        name = max(others, key=lambda name: self.results[name].worth, default="random")
        self.notes.append(f"no baseline is called oracle; {name}, the best, is taken for it")
        return name

    def _check_tasks(self) -> None:
        """Evaluation's tasks are not all training's; those that show nothing cannot tell."""
        seen: tuple[set[object], set[object]] = (set(), set())
        for trajectory in self.baselines["random"]:
            seen[is_evaluation_seed(trajectory.seed)].add(_task(trajectory))
        training, evaluation = seen
        if len(training) >= _DISTINCT and evaluation <= training:
            self.notes.append(f"all {len(evaluation)} tasks seen in evaluation are in training too")

    def _check_groups(self) -> None:
        policy = partial(by_script, self.environment.baselines["random"])
        groups = []
        for first in self.baselines["random"][: 2 * _GROUPS : 2]:
            others = [
                play(self.environment, policy, task, name="random", turns=_MOST_TURNS).trajectory
                for task in [EpisodeSpec(first.seed, member) for member in range(1, _MEMBERS)]
            ]
            groups.append([first, *others])
            if any(_task(trajectory) != _task(first) for trajectory in groups[-1]):
                self._fault("members of a group get different tasks", f"seed {first.seed}")
        if not any(rewards_vary(group, credit=Credit.episode, gamma=1.0) for group in groups):
            size = f"of {len(groups)} groups of {_MEMBERS} random players"
            self._fault("rewards vary in no group", f"{size}; give credit for parts")

    def _check_replays(self) -> None:
        for first in self.baselines["random"][:_REPLAYED]:
            again = replay(self.environment, first).trajectory
            if repr(again) != repr(first):  # in which NaN is NaN
                what = "episode with the same replies" if _task(again) == _task(first) else "task"
                self._fault("a seed differs when played again", f"seed {first.seed}, its {what}")

    def _play_unskilled(self) -> None:
        turns = max(_LEAST_TURNS, *(self.results[name].num_turns for name in self.baselines))
        policies = unskilled(self.baselines["random"], self.baselines[self.oracle])
        for name, policy in policies.items():
            self._play(name, policy, self.tasks, turns=turns)
        constants = {reply: always(reply) for reply in common_replies(self.baselines) or [""]}
        worth = {}
        for reply, policy in constants.items():
            self._play("constant", policy, self.tasks[:_LEAST], turns=turns)
            worth[reply] = self.results["constant"].worth
        best = max(worth, key=worth.__getitem__)
        self._play("constant", constants[best], self.tasks, turns=turns)
        cut = [f"{name} {r.num_cut}" for name, r in self.results.items() if r.num_cut]
        if cut:
            self.notes.append(f"only a limit (here {turns} turns) ends episodes: {', '.join(cut)}")

    def _check_skill(self) -> None:
        random, oracle = self.results["random"], self.results[self.oracle]
        gain = _above_line(oracle, random, random)
        if gain is None or gain.low <= _ROUNDING:
            less = f"{self.oracle} less random is {format_estimate(gain)}"
            self._fault("skill does not pay", f"{less}; look at the reward, or for a better oracle")
        for name, result in self.results.items():
            above = _above_line(result, random, oracle)
            if name in self.baselines or above is None or above.high <= _ROUNDING:
                continue
            earned = format_estimate(result.mean)
            where = f"{name} earns {earned}, first reply {_short(result.first_reply)}"
            if above.low > _ROUNDING:
                self._fault("a policy without skill comes near the oracle", where)
            else:
                self.notes.append(f"more num_examples would tell if it comes too near: {where}")

    def _fault(self, what: str, where: str) -> None:
        self.found.setdefault(what, []).append(one_line(where))


def _task(trajectory: Trajectory) -> str:
    """All that the policy sees of a task before its first reply."""
    observations = [turn.observation for turn in trajectory.turns[:1]]
    return f"{trajectory.system_prompt}\n{trajectory.tools}\n{observations}"


def _above_line(result: Result, random: Result, oracle: Result) -> Estimate | None:
    """How far a policy is above the line between random and the oracle, seed by seed."""
    rewards = zip(result.rewards, random.rewards, oracle.rewards, strict=False)  # one may stop
    above = [
        own - (1 - _SHARE) * floor - _SHARE * top
        for own, floor, top in rewards
        if own is not None and floor is not None and top is not None
    ]
    return intervals.mean(above) if above else None


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:60]}...")
