"""TRL's GRPOTrainer on episodes: rollouts come in as groups, rows of turns go out to its loss."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from itertools import groupby
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback
from trl import GRPOTrainer
from trl.trainer.utils import use_adapter

from environments import End
from rl_experiments import distributed
from rl_experiments.checkpoints.local import failure
from rl_experiments.config.schema import ChecksConfig, RewardConfig
from rl_experiments.errors import UserError
from rl_experiments.judge.rewarder import Judge
from rl_experiments.rollout.advantages import rewards_vary, turn_advantages
from rl_experiments.rollout.runner import RolloutRunner, sync_probe
from rl_experiments.rollout.types import EpisodeSpec, Trajectory, Turn
from rl_experiments.training.phase_timer import Phases
from rl_experiments.training.samples import TrainingSample, spans, trajectory_to_samples

_PROBE_EPISODES = 16  # on whose first turns every weight sync is tried


class EpisodeTrainer(GRPOTrainer):
    """GRPO whose completions are episodes. The dataset's rows are tasks with a `seed` column.

    Loss, batching, logging and optimisation are TRL's; generation and scoring are replaced, and a
    checkpoint counts only once it is sealed.
    """

    def __init__(
        self,
        *args: Any,
        rollout: Callable[[EpisodeTrainer], RolloutRunner],
        reward: RewardConfig,
        checks: ChecksConfig,
        seal: Callable[[int], None],
        micro_batch_tokens: int | None,
        judge: Judge | None,
        on_episodes: Callable[[int, list[Trajectory]], None],
        **kwargs: Any,
    ) -> None:
        # TRL wants a reward function; the environment has rewarded every turn already.
        super().__init__(*args, reward_funcs=[_environment_reward], **kwargs)
        self.rollout = rollout(self)
        self.reward_config = reward
        self.checks = checks
        self.seal = seal
        self.micro_batch_tokens = micro_batch_tokens
        self.judge = judge
        if self.rollout.sampler.engine is not None:
            self._probe = sync_probe(
                self.rollout, seeds=self.train_dataset["seed"][:_PROBE_EPISODES]
            )
            self.rollout.on_begin = self._prove_sync
        self.on_episodes = on_episodes
        self.phases = Phases()
        self.add_callback(_OptimizerTime(self.phases))
        self._streaks: Counter[str] = Counter()
        # Between sampler and trainer, of the parts of the first loss after a rollout.
        self._differences: list[torch.Tensor] = []
        self._is_compared = False

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        with self.phases("loss"):
            loss: torch.Tensor = super().training_step(*args, **kwargs)
        return loss

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        with self.phases("generation"):
            return self._generation(inputs)

    def _generation(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        groups = self._play(inputs)
        everyones = distributed.gather([[_without_tokens(e) for e in group] for group in groups])
        episodes = [episode for group in everyones for episode in group]
        if all(episode.end is End.FAILED for episode in episodes):
            errors = sorted({str(episode.error) for episode in episodes})
            raise UserError(f"env._target_: every episode failed: {'; '.join(errors[:3])}")
        advantages = turn_advantages(
            groups,
            credit=self.reward_config.credit,
            gamma=self.reward_config.gamma,
            scale_rewards=self.args.scale_rewards,
            all_groups=everyones,
        )
        rows = [
            row
            for group, values in zip(groups, advantages, strict=True)
            for episode, per_turn in zip(group, values, strict=True)
            if episode.end is not End.FAILED
            for row in trajectory_to_samples(episode, per_turn)
        ]
        if not any(distributed.gather([bool(rows)])):
            raise UserError(
                f"model.max_length={self.rollout.max_length}: the first prompt of no episode fits "
                f"beside trainer.max_completion_length={self.rollout.max_new_tokens}"
            )
        self._log_episodes(everyones)
        if self.judge is not None:
            for name, value in self.judge.report(everyones).items():
                self.record(name, value)
        batch = self._tensors(rows)
        self._differences = []
        self._is_compared = False
        if self.beta != 0.0:
            batch["ref_per_token_logps"] = self._reference_logps(batch)
        self._check(everyones)
        return batch

    def _play(self, inputs: list[dict[str, Any]]) -> list[list[Trajectory]]:
        seeds = [row["seed"] for row in inputs]
        tasks = [
            EpisodeSpec(seed, member)
            for seed, group in groupby(seeds)
            for member, _ in enumerate(group)
        ]
        rollout, step = self.rollout, self.state.global_step
        size = self.num_generations
        on_end = partial(self.judge.add, group_size=size) if self.judge else None
        trajectories = rollout.play(tasks, policy_version=step, on_end=on_end)
        groups = [trajectories[i : i + size] for i in range(0, len(trajectories), size)]
        if self.judge is not None:
            with self.phases("judge"):
                self.judge.reward(groups)
        self.on_episodes(step, trajectories)
        for trajectory in trajectories:
            version = trajectory.policy_version
            if trajectory.turns and trajectory.turns[0].reply_ids and version != step:
                raise UserError(
                    f"The engine played policy version {version}, the trainer is at {step}: its "
                    "weights were not brought up to date"
                )
        self.record("rollout/tokens", sum(distributed.gather([rollout.tokens])))
        self.record("time/rollout", rollout.seconds)
        self.record("time/environment", rollout.environment_seconds)
        self.record("time/tokens_per_second", rollout.tokens / rollout.seconds)
        for name, value in rollout.sampler.metrics().items():
            self.record(name, value)
        return groups

    def _tensors(self, rows: Sequence[TrainingSample]) -> dict[str, Any]:
        """Rows padded to one width, and with masked rows to as many as the mini-batches need.

        That is a multiple of their number, and the same in every process, however its episodes
        ended: TRL's metrics and the exchange of gradients wait for all of them.
        """
        most = max(distributed.gather([len(rows)]))
        missing = most + -most % self.args.steps_per_generation - len(rows)
        rows = [*rows, *[_masked(self._tokenizer.eos_token_id)] * missing]
        batch = self._ids(rows)
        mask = self._padded([row.mask for row in rows])
        batch |= {
            "tool_mask": mask,
            "advantages": self._padded([row.advantages for row in rows]),
            "num_items_in_batch": self.accelerator.gather(mask.sum()).sum(),
            "sampling_per_token_logps": self._padded([row.logprobs for row in rows]),
        }
        # The behaviour policy of the importance ratio is the sampler itself; `_compare` holds it to
        # the trainer's policy.
        batch["old_per_token_logps"] = batch["sampling_per_token_logps"]
        return batch

    def _ids(self, rows: Sequence[TrainingSample]) -> dict[str, Any]:
        """Prompts padded on the left, completions on the right, with their masks."""
        pad_id = self._tokenizer.pad_token_id
        prompts = [row.prompt_ids for row in rows]
        completions = [row.completion_ids for row in rows]
        return {
            "prompt_ids": self._padded(prompts, value=pad_id, side="left"),
            "prompt_mask": self._padded([[1] * len(p) for p in prompts], side="left"),
            "completion_ids": self._padded(completions, value=pad_id),
            "completion_mask": self._padded([[1] * len(c) for c in completions]),
        }

    def _padded(
        self, values: Sequence[Sequence[Any]], *, value: float = 0, side: str = "right"
    ) -> torch.Tensor:
        kind = np.float32 if isinstance(values[0][0], float) else np.int64
        padded = np.full((len(values), max(map(len, values))), value, dtype=kind)
        for row, own in zip(padded, values, strict=True):
            row[slice(-len(own), None) if side == "left" else slice(len(own))] = own
        return torch.from_numpy(padded).to(self.accelerator.device)

    @torch.no_grad()
    def _logps(self, model: Any, batch: dict[str, Any]) -> torch.Tensor:
        """Log-probabilities of the completions' tokens: (rows, tokens)."""
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        logps: torch.Tensor
        logps, _, _ = self._get_per_token_logps_and_entropies(
            model,
            ids,
            mask,
            batch["completion_ids"].size(1),
            batch_size=self._rows_at_once(ids.size(1)),
        )
        return logps

    def _reference_logps(self, batch: dict[str, Any]) -> torch.Tensor:
        if self.ref_model is not None:
            return self._logps(self.ref_model, batch)
        model = self.accelerator.unwrap_model(self.model)
        # TRL's copy of an adapter that is trained on; None: the base.
        with use_adapter(model, "ref" if "ref" in model.peft_config else None):
            return self._logps(self.model, batch)

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        with self.phases("log_probs"):
            found: tuple[Any, ...] = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        self._logps_of_loss = found[0].detach()
        return found

    def _compare(self, part: dict[str, Any], *, is_last: bool) -> None:
        """Stop when the sampler is not the policy: its log-probabilities are not the trainer's.

        They are those of the first loss after a rollout, on weights that have not changed since.
        """
        if self._is_compared:
            return
        difference = (self._logps_of_loss - part["sampling_per_token_logps"]).abs()
        self._differences.append(difference[part["tool_mask"].bool()])
        if not is_last:
            return
        self._is_compared = True
        mean, worst = self._everywhere(torch.cat(self._differences))
        self.record("sampling/sampling_logp_difference/mean", mean)
        self.record("sampling/sampling_logp_difference/max", worst)
        limit = self.checks.max_logp_difference
        if not mean <= limit:
            raise UserError(
                f"The sampler and the trainer disagree: mean log-probability difference {mean:.3f} "
                f"is above checks.max_logp_difference={limit}; the sampler's weights, dtype or "
                "temperature are not the policy's (try model.dtype=float32)"
            )

    def _prove_sync(self) -> None:
        """Stop when the engine, just given the weights, does not think what the trainer thinks."""
        engine = self.rollout.sampler.engine
        assert engine is not None
        batch = self._ids([TrainingSample(prompt, reply) for prompt, reply in self._probe])
        temperature: float = self.args.temperature
        self.temperature = 1.0
        with self.accelerator.autocast():
            trained = self._logps(self.model, batch)
        self.temperature = temperature
        found = self._padded(engine.logprobs(self._probe))
        difference = (trained - found)[batch["completion_mask"].bool()].abs()
        mean, _ = self._everywhere(difference)
        self.record("sampling/sync_logp_difference/mean", mean)
        if not mean <= self.checks.max_sync_difference:
            raise UserError(
                f"The engine is not the policy after a weight sync: on fixed prompts their mean "
                f"log-probability difference is {mean:.3f}, above checks.max_sync_difference="
                f"{self.checks.max_sync_difference}"
            )

    def _everywhere(self, values: torch.Tensor) -> tuple[float, float]:
        """Mean and maximum of the values of all processes, each of which may have none."""
        largest = values.max() if values.numel() else values.new_zeros(())
        own = torch.stack([values.sum(), values.new_tensor(float(values.numel())), largest])
        total, number, worst = self.accelerator.gather(own).view(-1, 3).unbind(1)
        return float(total.sum() / number.sum().clamp(min=1)), float(worst.max())

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> torch.Tensor:
        """The loss of a mini-batch; one of many tokens goes through the model in parts."""
        parts = self._parts(inputs) if model.training else []
        if len(parts) < 2:
            whole: torch.Tensor = super().compute_loss(model, inputs, False, num_items_in_batch)
            self._compare(inputs, is_last=True)
            return whole
        total = torch.zeros((), device=self.accelerator.device)
        for number, part in enumerate(parts):
            share = self._share(part, inputs)
            is_last = number == len(parts) - 1
            with nullcontext() if is_last else self.accelerator.no_sync(model):
                loss = super().compute_loss(model, part, False, num_items_in_batch) * share
                self._compare(part, is_last=is_last)
                if is_last:
                    last: torch.Tensor = total + loss  # whose backward pass is the caller's
                    return last
                self.accelerator.backward(loss)
            total += loss.detach()
        raise AssertionError("a mini-batch has rows")

    def _parts(self, inputs: dict[str, Any]) -> list[dict[str, Any]]:
        """The rows of a mini-batch, those of like length together, in parts that fit the GPU.

        Alike in every process, for TRL gathers figures of each row.
        """
        if self.micro_batch_tokens is None:
            return []
        prompts = inputs["prompt_mask"].sum(1).tolist()
        replies = inputs["completion_mask"].sum(1).clamp(min=1).tolist()
        # Prompts and replies are padded apart: a long prompt with a short reply does not go well
        # with the opposite, however alike their sums.
        order = sorted(
            range(len(prompts)),
            key=lambda row: (replies[row].bit_length(), prompts[row] + replies[row]),
        )
        own = [(prompts[row], replies[row]) for row in order]
        everyones = zip(*distributed.gather([own]), strict=True)
        widest = [(max(p for p, _ in sizes), max(r for _, r in sizes)) for sizes in everyones]
        rows = torch.tensor(order, device=inputs["prompt_mask"].device)
        return [_narrow(inputs, rows[span]) for span in spans(widest, self.micro_batch_tokens)]

    def _rows_at_once(self, width: int) -> int:
        """How many rows of so many tokens go through the model together."""
        if self.micro_batch_tokens is None:
            return int(self.args.per_device_train_batch_size)
        return max(1, self.micro_batch_tokens // width)

    def _share(self, part: dict[str, Any], whole: dict[str, Any]) -> float:
        """What a part's loss counts for in that of the whole: TRL's losses are sums or means."""
        if self.loss_type in ("dapo", "cispo", "vespo"):
            return 1.0
        if self.loss_type == "bnpo":
            return float(part["tool_mask"].sum() / whole["tool_mask"].sum().clamp(min=1))
        return float(part["prompt_ids"].size(0) / whole["prompt_ids"].size(0))

    def _log_episodes(self, groups: Sequence[Sequence[Trajectory]]) -> None:
        episodes = [episode for group in groups for episode in group]
        rewards = [episode.reward for episode in episodes if episode.reward is not None]
        if rewards:  # a judge may have given none
            self.record("reward", fmean(rewards))
        own = [e.independent_reward for e in episodes if e.independent_reward is not None]
        if own:
            self.record("independent_reward", fmean(own))
        self.record("reward_std", stdev(rewards) if len(rewards) > 1 else 0.0)
        varied = fmean(self._varies(group) for group in groups)
        self.record("frac_reward_zero_std", 1.0 - varied)
        self.record("win_rate", fmean(episode.won for episode in episodes))
        self.record("turns", fmean(len(episode.turns) for episode in episodes))
        ends = Counter(episode.end for episode in episodes)
        for end in End:
            self.record(f"end/{end}", ends[end] / len(episodes))
        values = defaultdict(list)
        for episode in episodes:
            for name, value in episode.metrics.items():
                values[name].append(value)
        for name, found in values.items():
            self.record(f"env/{name}", fmean(found))

    def _check(self, groups: Sequence[Sequence[Trajectory]]) -> None:
        """Stop a run that cannot learn, and say why."""
        episodes = [episode for group in groups for episode in group]
        invalid = fmean(episode.end is End.INVALID for episode in episodes)
        patience = self.checks.patience
        if self._streak("invalid", invalid > self.checks.max_invalid) >= patience:
            raise UserError(
                f"The reply format has collapsed: {invalid:.0%} of the episodes ended on a reply "
                f"that could not be read, {patience} generations in a row; lower "
                "trainer.learning_rate, raise trainer.max_completion_length, or raise "
                "checks.max_invalid"
            )
        if self._streak("flat", not any(map(self._varies, groups))) >= patience:
            raise UserError(
                f"No group's rewards varied in {patience} generations: there is nothing to learn "
                "from; make the task easier or harder (env.*), raise trainer.num_generations or "
                "trainer.temperature, or raise checks.patience"
            )

    def _varies(self, group: Sequence[Trajectory]) -> bool:
        config = self.reward_config
        return rewards_vary(group, credit=config.credit, gamma=config.gamma)

    def _streak(self, name: str, happened: bool) -> int:
        self._streaks[name] = self._streaks[name] + 1 if happened else 0
        return self._streaks[name]

    def record(self, name: str, value: float) -> None:
        """Among the metrics of the generation that is logged next."""
        self._metrics["train"][name].append(float(value))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            for name, value in self.phases.take().items():
                if name != "time/generation":  # all but its phases
                    self.record(name, value)
        super().log(logs, start_time)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        step = self.state.global_step
        with self.phases("checkpoint"):
            try:
                super()._save_checkpoint(model, trial)
                distributed.barrier()
                if distributed.is_first():
                    self.seal(step)
            except Exception as error:
                raise failure(self.args.output_dir, step=step, error=error) from error

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """No card beside each checkpoint: the run folder says what made it."""


class _OptimizerTime(TrainerCallback):
    """The optimizer's own phase, which lies between two of the trainer's calls."""

    def __init__(self, phases: Phases) -> None:
        self._phases = phases
        self._running = ExitStack()

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self._running.enter_context(self._phases("optimizer"))

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self._running.close()


def _narrow(batch: dict[str, Any], rows: torch.Tensor) -> dict[str, Any]:
    """Some rows of a batch, without the columns that none of them fills."""
    part = {
        name: value[rows] if torch.is_tensor(value) and value.dim() > 1 else value
        for name, value in batch.items()
    }
    prompt = int(part["prompt_mask"].sum(1).max())
    reply = max(1, int(part["completion_mask"].sum(1).max()))
    for name, value in part.items():
        if torch.is_tensor(value) and value.dim() > 1:
            part[name] = value[:, -prompt:] if name.startswith("prompt") else value[:, :reply]
    return part


def _without_tokens(trajectory: Trajectory) -> Trajectory:
    """What the other processes need of an episode."""
    turns = [Turn("", reward=turn.reward) for turn in trajectory.turns]
    return dataclasses.replace(trajectory, turns=turns)


def _environment_reward(**_: Any) -> list[float]:
    raise RuntimeError("episodes are rewarded by their environment")


def _masked(token: int) -> TrainingSample:
    """The shortest row, which no loss counts."""
    return TrainingSample([token], [token], [0], [0.0], [0.0])
