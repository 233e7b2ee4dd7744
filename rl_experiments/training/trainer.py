"""TRL's GRPOTrainer on episodes: groups of episodes are played, training samples go to TRL's loss.

Read `EpisodeTrainer` from top to bottom: one generation (play, advantages, batch), then the loss of
its mini-batches, then metrics and checkpoints. Loss, optimizer, schedule and logging are TRL's.

This module and `split_loss.py` are the only ones that use private names of TRL 1.16.0 and
transformers 5.17.0; here these:

- `GRPOTrainer._generate_and_score_completions`, overridden: dataset rows in, a batch out
- `GRPOTrainer._get_per_token_logps_and_entropies`, called and overridden, to keep its result
- `GRPOTrainer._metrics`, appended to: values that `log` averages and empties
- `Trainer._save_checkpoint`, overridden: writes `checkpoint-{step}`
- `Trainer._load_from_checkpoint`, overridden: loads the weights of one
- `TrainingArguments._n_gpu`, set
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from trl import GRPOConfig
from trl.trainer.utils import use_adapter

from environments import End
from rl_experiments import distributed
from rl_experiments.checkpoints.local import remove_unfinished
from rl_experiments.config.schema import ChecksConfig, RewardConfig
from rl_experiments.judge.rewarder import Judge
from rl_experiments.paths import checkpoint_name
from rl_experiments.rollout.advantages import turn_advantages
from rl_experiments.rollout.runner import RolloutRunner
from rl_experiments.rollout.types import EpisodeSpec, Trajectory, Turn
from rl_experiments.training import guards, resume
from rl_experiments.training.callbacks import StopIfNotFinite, TimeOptimizer
from rl_experiments.training.collate import collate
from rl_experiments.training.episode_metrics import episode_metrics
from rl_experiments.training.micro_batches import (
    Batch,
    rows_at_once,
)
from rl_experiments.training.phase_timer import PhaseTimer
from rl_experiments.training.sampler_guard import SamplerGuard
from rl_experiments.training.samples import TrainingSample, trajectory_to_samples
from rl_experiments.training.split_loss import SplitLossTrainer


class EpisodeTrainer(SplitLossTrainer):
    """Trains a policy with GRPO on episodes. Each row of the dataset is an episode's `seed`.

    - `rollout` makes the runner that plays the episodes, given this trainer.
    - `finalize_checkpoint(step)` is called once the files of a checkpoint are written.
    - `on_episodes(step, trajectories)` is called with the episodes of each generation.
    """

    def __init__(
        self,
        *,
        args: GRPOConfig,
        rollout: Callable[[EpisodeTrainer], RolloutRunner],
        reward: RewardConfig,
        checks: ChecksConfig,
        finalize_checkpoint: Callable[[int], None],
        judge: Judge | None,
        on_episodes: Callable[[int, list[Trajectory]], None],
        **kwargs: Any,
    ) -> None:
        # A process uses one GPU, even if it sees several: `gpu.count` starts a process for each.
        args._n_gpu = min(1, args.n_gpu)
        # TRL requires a reward function, but the environment rewards the turns as they are played.
        super().__init__(args=args, reward_funcs=[_unused_reward], **kwargs)
        if self.ref_model is not None:
            # TRL loads it from the folder that the model came from; but an adapter may have been
            # merged into the model since. The KL term is against the policy as training begins.
            reference = self.accelerator.unwrap_model(self.ref_model)
            reference.load_state_dict(self.accelerator.unwrap_model(self.model).state_dict())
        self.rollout = rollout(self)
        self.reward_config = reward
        self.checks = checks
        self.finalize_checkpoint = finalize_checkpoint
        self.judge = judge
        self.on_episodes = on_episodes
        self.learning_guard = guards.LearningGuard(checks, reward)
        self.sampler_guard = SamplerGuard(self)
        if self.rollout.sampler.engine is not None:
            self.rollout.on_begin = self.sampler_guard.check_sync
        self.phase_timer = PhaseTimer()
        self.add_callback(TimeOptimizer(self.phase_timer))
        self.add_callback(StopIfNotFinite())

    # One generation: play the episodes, compute their advantages, make a batch.

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> Batch:
        """Turn dataset rows into a batch; TRL calls this once for several optimizer steps."""
        with self.phase_timer.phase("generation"):
            return self._generate_batch([row["seed"] for row in inputs])

    def _generate_batch(self, seeds: Sequence[int]) -> Batch:
        """Play an episode for each seed and return them as one batch for all mini-batches."""
        groups = self._play_groups(seeds)
        all_groups = distributed.gather([[_without_tokens(e) for e in group] for group in groups])
        guards.check_some_episode_was_played([e for group in all_groups for e in group])
        advantages = turn_advantages(
            groups,
            credit=self.reward_config.credit,
            gamma=self.reward_config.gamma,
            scale_rewards=self.args.scale_rewards,
            all_groups=all_groups,
        )
        samples = [
            sample
            for group, advantages_of_group in zip(groups, advantages, strict=True)
            for episode, per_turn in zip(group, advantages_of_group, strict=True)
            if episode.end is not End.FAILED
            for sample in trajectory_to_samples(episode, per_turn)
        ]
        guards.check_some_prompt_fits(
            any(distributed.gather([bool(samples)])),
            max_length=self.rollout.max_length,
            max_new_tokens=self.rollout.max_new_tokens,
        )
        self._record_all(episode_metrics(all_groups, self.reward_config))
        if self.judge is not None:
            self._record_all(self.judge.report(all_groups))
        batch = self._collate(samples)
        if self.beta != 0.0:  # the loss has a KL term
            batch["ref_per_token_logps"] = self._reference_logprobs(batch)
        self.sampler_guard.expect()
        self.learning_guard.check(all_groups)
        return batch

    def _play_groups(self, seeds: Sequence[int]) -> list[list[Trajectory]]:
        """Play an episode for each seed; return the episodes of each group with their rewards.

        A group is `num_generations` equal seeds in a row.
        """
        specs = [
            EpisodeSpec(seed, member)
            for seed, group in groupby(seeds)
            for member, _ in enumerate(group)
        ]
        rollout, step, size = self.rollout, self.state.global_step, self.num_generations
        on_end = partial(self.judge.add, group_size=size) if self.judge else None
        trajectories = rollout.play(specs, policy_version=step, on_end=on_end)
        groups = [trajectories[i : i + size] for i in range(0, len(trajectories), size)]
        if self.judge is not None:
            with self.phase_timer.phase("judge"):
                self.judge.reward(groups)
        self.on_episodes(step, trajectories)
        guards.check_policy_version(trajectories, step=step)
        self.record("rollout/tokens", sum(distributed.gather([rollout.tokens])))
        self.record("time/rollout", rollout.seconds)
        self.record("time/environment", rollout.environment_seconds)
        self.record("time/tokens_per_second", rollout.tokens / rollout.seconds)
        self._record_all(rollout.sampler.metrics())
        return groups

    def _collate(self, samples: Sequence[TrainingSample]) -> Batch:
        """Return the samples as a batch, filled up with samples that the loss ignores.

        Every process has the same number of samples, a multiple of the number of mini-batches,
        however its episodes ended: TRL's metrics and the exchange of gradients wait for all.
        """
        counts = distributed.gather([len(samples)])
        largest = max(counts)
        wanted = largest + -largest % self.args.steps_per_generation
        filler = TrainingSample.without_loss(self.processing_class.eos_token_id)
        batch: Batch = collate(
            [*samples, *[filler] * (wanted - len(samples))],
            pad_token_id=self.processing_class.pad_token_id,
            device=self.accelerator.device,
        )
        # Losses that are means over samples count those that the loss ignores.
        batch["row_scale"] = torch.tensor(wanted * len(counts) / sum(counts))
        batch["num_items_in_batch"] = self.accelerator.gather(batch["tool_mask"].sum()).sum()
        return batch

    # Log-probabilities outside the loss.

    def _reference_logprobs(self, batch: Batch) -> torch.Tensor:
        """Return the completions' log-probabilities under the KL anchor: (samples, tokens)."""
        if self.ref_model is not None:
            return self._completion_logprobs(self.ref_model, batch)
        model = self.accelerator.unwrap_model(self.model)
        # "ref" is TRL's copy of an adapter that training continues; None switches the adapter off.
        with use_adapter(model, "ref" if "ref" in model.peft_config else None):
            return self._completion_logprobs(self.model, batch)

    @torch.no_grad()
    def _completion_logprobs(self, model: Any, batch: Batch) -> torch.Tensor:
        """Return the log-probabilities of the completions' tokens: (samples, tokens)."""
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        batch_size = self.rows_at_once(ids.size(1))
        logprobs: torch.Tensor
        logprobs, _, _ = self._get_per_token_logps_and_entropies(
            model, ids, mask, batch["completion_ids"].size(1), batch_size=batch_size
        )
        return logprobs

    def rows_at_once(self, row_tokens: int) -> int:
        """Return how many rows of `row_tokens` tokens go through the model without gradients."""
        if self.micro_batch_tokens is None:
            return int(self.args.per_device_train_batch_size)
        return rows_at_once(row_tokens, self.micro_batch_tokens)

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Return TRL's result, timed as the phase `log_probs`."""
        with self.phase_timer.phase("log_probs"):
            return super()._get_per_token_logps_and_entropies(*args, **kwargs)

    # The loss of a mini-batch.

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Do TRL's training step, timed as the phase `loss`."""
        with self.phase_timer.phase("loss"):
            loss: torch.Tensor = super().training_step(*args, **kwargs)
        return loss

    def check_part(self, micro_batch: Batch, *, is_last: bool) -> None:
        """Compare the loss's log-probabilities with the sampler's, once per generation."""
        self.sampler_guard.compare(micro_batch, self._loss_logprobs.detach(), is_last=is_last)

    # Metrics and checkpoints.

    def record(self, name: str, value: float) -> None:
        """Add a value to the next log entry, which has the mean of each metric's values."""
        self._metrics["train"][name].append(float(value))

    def _record_all(self, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self.record(name, value)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log TRL's metrics with the seconds of each phase since the last entry."""
        if "loss" in logs:  # absent in the summary at the end of training
            phases = self.phase_timer.take()
            phases.pop("time/generation", None)  # its parts are logged
            self._record_all(phases)
        super().log(logs, start_time)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write `checkpoint-{step}`, then finalize it; remove its files if that fails."""
        step = self.state.global_step
        with self.phase_timer.phase("checkpoint"):
            try:
                super()._save_checkpoint(model, trial)
                if self.args.sync_ref_model and distributed.is_first():
                    folder = Path(self.args.output_dir) / checkpoint_name(step)
                    reference = self.accelerator.unwrap_model(self.ref_model)
                    resume.save_reference_model(reference, folder)
                distributed.barrier()
                if distributed.is_first():
                    self.finalize_checkpoint(step)
            except Exception as error:
                raise remove_unfinished(self.args.output_dir, step=step, error=error) from error

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load the weights of a checkpoint of this run, and the reference model's if it moves."""
        folder = Path(resume_from_checkpoint)
        model = model or self.model
        resume.load_weights(model, folder)
        guards.check_weights_are_finite(model, where=str(folder))
        if self.args.sync_ref_model:
            resume.load_reference_model(self.accelerator.unwrap_model(self.ref_model), folder)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with resume.plain_data_only(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with resume.plain_data_only(checkpoint):
            super()._load_rng_state(checkpoint)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write no model card into checkpoints: the run folder has what made them."""


def _without_tokens(trajectory: Trajectory) -> Trajectory:
    """Return what other processes need of an episode: all but texts and tokens of its turns."""
    turns = [Turn("", reward=turn.reward) for turn in trajectory.turns]
    return dataclasses.replace(trajectory, turns=turns)


def _unused_reward(**_: Any) -> list[float]:
    raise RuntimeError("episodes are rewarded by their environment, not by a function of TRL's")
