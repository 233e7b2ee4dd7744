"""Whether training can trust an environment's reward, tried without a model.

Policies without skill play the same seeds as the scripted baselines. These are faults:

- The oracle (or, without one, the best baseline) does not surely earn more than "random", or a
  policy without skill surely earns more than half of the way from "random" to the oracle. "Surely"
  means that the 95 % interval of the mean difference over the seeds says so; where the interval
  leaves it open, there is a note.
- No group of random players has rewards that vary, or its members do not get the same task.
- A reward is beyond 100; an episode fails, because a reply makes the environment raise or return
  what is no Step of finite numbers; a reply takes it more than 50 ms of CPU time each time; a seed
  gives another episode when it is played again.
- A baseline's episode has no end. Policies without skill are cut after as many turns as the longest
  episode of the baselines has, as a limit on tokens would cut them; what they earned until then
  counts.
"""

from __future__ import annotations

from collections.abc import Sequence

from environments import Environment, is_evaluation_seed
from rl_experiments.audit.no_skill_policies import always, common_replies, no_skill_policies
from rl_experiments.audit.timed_play import (
    AuditResult,
    EpisodePolicy,
    TimedEpisode,
    play_timed,
    replay,
    scripted,
)
from rl_experiments.config.schema import Credit
from rl_experiments.errors import UserError, one_line
from rl_experiments.rollout.advantages import rewards_vary
from rl_experiments.rollout.types import EpisodeSpec, Trajectory
from rl_experiments.stats import intervals
from rl_experiments.stats.intervals import Estimate, format_estimate

_MIN_EPISODES = 20  # fewer give intervals that say nothing
_MAX_BASELINE_TURNS = 5000
_MIN_TURNS_BEFORE_CUT = 20  # of a policy without skill
_MAX_STEP_SECONDS = 0.05  # of CPU time
_MAX_REWARD = 100.0
_MAX_SHARE_OF_SKILL = 0.5  # of the way from random to the oracle
_GROUP_SIZE = 4
_NUM_GROUPS = 25
_NUM_REPLAYED = 20  # episodes
_ROUNDING = 1e-9
_MIN_DISTINCT_TASKS = 10  # fewer first observations do not tell tasks apart


class EnvironmentAudit:
    """What an environment does under all the policies.

    `notes` are lines. `where_by_fault` has a line for each place that shows a fault, by kind of
    fault; `faults` sums them up, one line a kind.
    """

    def __init__(self, environment: Environment, num_examples: int) -> None:
        if num_examples < _MIN_EPISODES:
            raise UserError(f"num_examples={num_examples}: audit needs at least {_MIN_EPISODES}")
        self.environment = environment
        # Training and evaluation seeds alternate.
        self.specs = [EpisodeSpec(seed) for seed in range(num_examples)]
        self.results: dict[str, AuditResult] = {}
        self.notes: list[str] = []
        self.where_by_fault: dict[str, list[str]] = {}
        self.baselines = {
            name: self._play(name, scripted(script), self.specs, max_turns=_MAX_BASELINE_TURNS)
            for name, script in environment.baselines.items()
        }
        self.oracle = self._choose_oracle()
        self._check_evaluation_tasks()
        self._check_groups()
        self._check_replays()
        # Where a baseline finds no end, policies without skill would find none either, slowly.
        if not any(result.num_cut for result in self.results.values()):
            self._play_no_skill_policies()
        self._check_skill()

    @property
    def faults(self) -> list[str]:
        """One line for each kind of fault, with the first place that shows it."""
        return [
            f"{fault}: {places[0]}" + f" (and {len(places) - 1} more)" * (len(places) > 1)
            for fault, places in self.where_by_fault.items()
        ]

    def _play(
        self, name: str, policy: EpisodePolicy, specs: Sequence[EpisodeSpec], *, max_turns: int
    ) -> list[Trajectory]:
        """Play the policy's episodes; stop early where the environment is slow or endless."""
        result = self.results[name] = AuditResult()
        trajectories = []
        for spec in specs:
            episode = play_timed(self.environment, policy, spec, name=name, max_turns=max_turns)
            trajectories.append(episode.trajectory)
            result.add(episode)
            where = f"{name} at seed {spec.seed}"
            self._check_rewards(episode, where)
            self._check_end(episode, where)
            is_slow = self._check_time(episode, where)
            if is_slow or len(episode.trajectory.turns) == _MAX_BASELINE_TURNS:
                break
        return trajectories

    def _check_rewards(self, episode: TimedEpisode, where: str) -> None:
        too_great = [reward for reward in episode.rewards if abs(reward) > _MAX_REWARD]
        if too_great:
            self._add_fault("a reward is too great", f"{where}, {max(too_great, key=abs):g}")

    def _check_end(self, episode: TimedEpisode, where: str) -> None:
        trajectory = episode.trajectory
        if trajectory.error:
            reply = f", to {_shorten(trajectory.turns[-1].reply)}" if trajectory.turns else ""
            self._add_fault("an episode fails", f"{where}{reply}, {trajectory.error}")
        if episode.is_cut and len(trajectory.turns) == _MAX_BASELINE_TURNS:
            self._add_fault(f"an episode has no end in {_MAX_BASELINE_TURNS} turns", where)

    def _check_time(self, episode: TimedEpisode, where: str) -> bool:
        """Return whether a step is slow each time; the first time may load something."""
        seconds = episode.slowest_step_seconds
        if seconds > _MAX_STEP_SECONDS:
            again = replay(self.environment, episode.trajectory)
            seconds = min(seconds, again.slowest_step_seconds)
        if seconds <= _MAX_STEP_SECONDS:
            return False
        longest = max(len(turn.reply) for turn in episode.trajectory.turns)
        cost = f"replies of up to {longest} characters, {seconds * 1000:.0f} ms"
        self._add_fault("a step is slow", f"{where}, {cost}")
        return True

    def _choose_oracle(self) -> str:
        """Return the baseline that plays best: "oracle", else the one with the best mean reward."""
        if "oracle" in self.baselines:
            return "oracle"
        others = [name for name in self.baselines if name != "random"]
        best = max(others, key=lambda name: self.results[name].ranking_value, default="random")
        self.notes.append(f"no baseline is called oracle; {best}, the best one, stands in for it")
        return best

    def _check_evaluation_tasks(self) -> None:
        """Note when every evaluation task also occurs in training.

        Nothing can be said where the first observations do not tell tasks apart.
        """
        training: set[str] = set()
        evaluation: set[str] = set()
        for trajectory in self.baselines["random"]:
            tasks = evaluation if is_evaluation_seed(trajectory.seed) else training
            tasks.add(_visible_task(trajectory))
        if len(training) >= _MIN_DISTINCT_TASKS and evaluation <= training:
            self.notes.append(f"all {len(evaluation)} tasks seen in evaluation are in training too")

    def _check_groups(self) -> None:
        """Check that the members of a group get one task, and that their rewards vary."""
        policy = scripted(self.environment.baselines["random"])
        groups = []
        for first in self.baselines["random"][: 2 * _NUM_GROUPS : 2]:
            others = [
                play_timed(
                    self.environment,
                    policy,
                    EpisodeSpec(first.seed, member),
                    name="random",
                    max_turns=_MAX_BASELINE_TURNS,
                ).trajectory
                for member in range(1, _GROUP_SIZE)
            ]
            groups.append([first, *others])
            if any(_visible_task(trajectory) != _visible_task(first) for trajectory in others):
                self._add_fault("members of a group get different tasks", f"seed {first.seed}")
        if not any(rewards_vary(group, credit=Credit.episode, gamma=1.0) for group in groups):
            where = f"{len(groups)} groups of {_GROUP_SIZE} random players"
            remedy = "give credit for parts of the task"
            self._add_fault("rewards vary in no group", f"{where}; {remedy}")

    def _check_replays(self) -> None:
        """Check that a seed with the same replies gives the same episode again."""
        for first in self.baselines["random"][:_NUM_REPLAYED]:
            again = replay(self.environment, first).trajectory
            if repr(again) != repr(first):  # repr, for NaN is not equal to itself
                is_same_task = _visible_task(again) == _visible_task(first)
                what = "episode with the same replies" if is_same_task else "task"
                where = f"seed {first.seed}, its {what}"
                self._add_fault("a seed differs when played again", where)

    def _play_no_skill_policies(self) -> None:
        longest = max(self.results[name].max_turns for name in self.baselines)
        max_turns = max(_MIN_TURNS_BEFORE_CUT, longest)
        policies = no_skill_policies(self.baselines["random"], self.baselines[self.oracle])
        for name, policy in policies.items():
            self._play(name, policy, self.specs, max_turns=max_turns)
        # "constant" is the best of the replies that a policy may learn to give to any task.
        value_by_reply = {}
        for reply in common_replies(self.baselines) or [""]:
            self._play("constant", always(reply), self.specs[:_MIN_EPISODES], max_turns=max_turns)
            value_by_reply[reply] = self.results["constant"].ranking_value
        best = max(value_by_reply, key=value_by_reply.__getitem__)
        self._play("constant", always(best), self.specs, max_turns=max_turns)
        cut = [
            f"{name} {result.num_cut}" for name, result in self.results.items() if result.num_cut
        ]
        if cut:
            self.notes.append(
                f"only a limit (here {max_turns} turns) ends episodes: {', '.join(cut)}"
            )

    def _check_skill(self) -> None:
        """Check that skill pays, and that policies without it stay far from the oracle."""
        random, oracle = self.results["random"], self.results[self.oracle]
        gain = _above_halfway(oracle, random, random)  # that is, oracle - random
        if gain is None or gain.low <= _ROUNDING:
            difference = f"{self.oracle} - random is {format_estimate(gain)}"
            remedy = "change the reward, or give a better oracle"
            self._add_fault("skill does not pay", f"{difference}; {remedy}")
        for name, result in self.results.items():
            above = _above_halfway(result, random, oracle)
            if name in self.baselines or above is None or above.high <= _ROUNDING:
                continue
            earned = format_estimate(result.mean)
            where = f"{name} earns {earned}, first reply {_shorten(result.first_reply)}"
            if above.low > _ROUNDING:
                self._add_fault("a policy without skill comes near the oracle", where)
            else:
                self.notes.append(
                    f"raise num_examples to tell if a policy comes too near the oracle: {where}"
                )

    def _add_fault(self, fault: str, where: str) -> None:
        self.where_by_fault.setdefault(fault, []).append(one_line(where))


def _visible_task(trajectory: Trajectory) -> str:
    """Return all that the policy sees of a task before its first reply."""
    observations = [turn.observation for turn in trajectory.turns[:1]]
    return f"{trajectory.system_prompt}\n{trajectory.tools}\n{observations}"


def _above_halfway(
    result: AuditResult, random: AuditResult, oracle: AuditResult
) -> Estimate | None:
    """Return by how much a policy earns more than halfway from random to the oracle, by seed.

    None if no seed has a finite reward in all three.
    """
    rewards = zip(result.rewards, random.rewards, oracle.rewards, strict=False)  # one may stop
    above = [
        reward - (1 - _MAX_SHARE_OF_SKILL) * floor - _MAX_SHARE_OF_SKILL * top
        for reward, floor, top in rewards
        if reward is not None and floor is not None and top is not None
    ]
    return intervals.mean(above) if above else None


def _shorten(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:60]}...")
