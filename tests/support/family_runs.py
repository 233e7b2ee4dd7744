"""A whole run of a family's tiny model: played, trained, resumed, exported and played again."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any, ClassVar

import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from environments import End, Environment, ScriptedPolicy, Step
from rl_experiments.export.model import save_model
from rl_experiments.inference.transformers_sampler import TransformersSampler
from rl_experiments.rollout.chat_template import UnusableTemplate
from rl_experiments.rollout.types import EpisodeSpec, Trajectory
from rl_experiments.training.trainer import EpisodeTrainer
from tests.support.families import FAMILIES, save_family
from tests.support.trainers import composed, small_trainer

FORMS = ("system", "tools", "thinking")
_TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
_REPLY_TOKENS = 5
_SETTINGS = [
    "model.scratch=null",
    "model.max_length=400",
    "model.dtype=float32",
    "trainer.max_steps=2",
    "trainer.num_generations=4",
    "trainer.per_device_train_batch_size=4",
    "trainer.steps_per_generation=1",
    "trainer.learning_rate=1e-2",
    f"trainer.max_completion_length={_REPLY_TOKENS}",
    "checkpoint.every_steps=1",
]


@dataclass(frozen=True)
class Case:
    """One choice of each kind."""

    family: str
    form: str  # of FORMS
    lora: bool
    turns: int

    @property
    def refusal(self) -> str:
        """What the family's chat template says against it; empty if it is played."""
        if self.family == "gemma2" and self.form == "system":
            return "System role not supported"
        if self.form == "tools" and self.turns > 1:
            if self.family in ("gemma2", "gemma3"):
                return "Conversation roles must alternate"
            if self.family == "mistral":
                return "Only user and assistant roles are supported"
        return ""

    def __str__(self) -> str:
        weights = "lora" if self.lora else "all"
        return f"{self.family}-{self.form}-{weights}-{self.turns}"


def all_cases() -> Iterator[Case]:
    """Yield the full product: 96 cases."""
    for family, form, lora, turns in product(FAMILIES, FORMS, (True, False), (1, 3)):
        yield Case(family, form, lora, turns)


def covering_cases() -> Iterator[Case]:
    """Yield 24 cases in which each pair of choices of two kinds is there at least once."""
    for (i, family), (j, form) in product(enumerate(FAMILIES), enumerate(FORMS)):
        yield Case(family, form, lora=(i + j) % 2 == 0, turns=1 + 2 * ((i // 2 + j) % 2))


@dataclass
class Talk(Environment):
    """Rewards replies by their letters, so that a model without skill has something to learn."""

    turns: int = 1
    form: str = "system"

    baselines: ClassVar[Mapping[str, ScriptedPolicy]] = {"random": lambda env, rng: "left"}

    @property
    def system_prompt(self) -> str:
        return "Play the game." if self.form == "system" else ""

    @property
    def tools(self) -> list[dict[str, Any]] | None:
        return _TOOLS if self.form == "tools" else None

    def reset(self, seed: int, *, member: int = 0) -> str:
        self.played = 0
        return f"The board: {seed % 97} | _"

    def step(self, reply: str) -> Step:
        self.played += 1
        reward = sum(map(ord, reply)) % 17 / 17
        if self.played == self.turns:
            return Step(reward=reward, end=End.LOST)
        role = "tool" if self.form == "tools" else "user"
        return Step(observation=f'{{"move": "{self.played}"}}', role=role, reward=reward)


def run(case: Case, folder: Path) -> None:
    """Assert all that a run must be; where the template refuses, assert its line."""
    model = save_family(case.family, folder / "model", thinks=case.form == "thinking")
    overrides = [*_SETTINGS, f"model.path={model}", f"model.lora.enabled={str(case.lora).lower()}"]
    environment = Talk(turns=case.turns, form=case.form)
    if case.refusal:
        try:
            small_trainer(folder / "refused", *overrides, environment=environment)
        except UnusableTemplate as error:
            assert str(error).startswith(f"model.path={model}: ") and case.refusal in str(error)
            return
        raise AssertionError("it was not refused")
    straight = small_trainer(folder / "straight", *overrides, environment=environment)
    episodes = _train(straight)
    _assert_episodes(straight, episodes, case)
    _assert_resumes(folder, straight, environment, overrides)
    _assert_exports(folder, straight, overrides)


def _train(trainer: EpisodeTrainer) -> list[Trajectory]:
    """Train, and return the episodes that were played."""
    episodes: list[Trajectory] = []
    record = trainer.on_episodes

    def keep(step: int, played: list[Trajectory]) -> None:
        episodes.extend(played)
        record(step, played)

    trainer.on_episodes = keep
    trainer.train()
    return episodes


def _assert_episodes(trainer: EpisodeTrainer, episodes: list[Trajectory], case: Case) -> None:
    """The prompts are the template's and grow; the policy itself has played."""
    tokenizer = trainer.processing_class
    assert len(episodes) == 8
    assert {len(each.turns) for each in episodes} == {case.turns}
    assert len({each.reward for each in episodes}) > 1
    for episode in episodes:
        head = [{"role": "system", "content": episode.system_prompt}]
        chat = [
            *(head if episode.system_prompt else []),
            {"role": "user", "content": episode.turns[0].observation},
        ]
        text = tokenizer.apply_chat_template(
            chat, tools=episode.tools, add_generation_prompt=True, tokenize=False
        )
        whole = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert episode.turns[0].prompt_ids == whole
        for before, turn in pairwise(episode.turns):
            kept = before.prompt_ids + before.reply_ids[:-1]
            assert turn.prompt_ids[: len(kept)] == kept
    for entry in trainer.state.log_history[:2]:
        assert entry["sampling/sampling_logp_difference/max"] < 1e-3
        assert entry["grad_norm"] > 0


def _assert_resumes(
    folder: Path, straight: EpisodeTrainer, environment: Talk, overrides: list[str]
) -> None:
    """The second step after a resume from the first gives the same weights bit for bit."""
    checkpoint = folder / "halves/checkpoints/checkpoint-1"
    shutil.copytree(folder / "straight/checkpoints/checkpoint-1", checkpoint)
    resumed = small_trainer(folder / "halves", *overrides, environment=environment)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    weights = [
        {
            name: tensor
            for file in (folder / half / f"checkpoints/checkpoint-{step}").glob("*.safetensors")
            for name, tensor in load_file(file).items()
        }
        for half, step in (("straight", 2), ("halves", 2), ("straight", 1))
    ]
    assert weights[0].keys() == weights[1].keys() and weights[0]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert any(not torch.equal(weights[0][name], weights[2][name]) for name in weights[0])


def _assert_exports(folder: Path, trainer: EpisodeTrainer, overrides: list[str]) -> None:
    """The exported model plays the same episodes as the policy, with the same probabilities."""
    # As a run's folder has them, without enumerations.
    cfg = OmegaConf.create(OmegaConf.to_yaml(composed("name=x", *overrides)))
    save_model(folder / "straight/checkpoints/checkpoint-2", folder / "out", cfg, label="x")
    exported = AutoModelForCausalLM.from_pretrained(folder / "out", dtype=torch.float32)
    sampler = trainer.rollout.sampler
    assert isinstance(sampler, TransformersSampler)
    twin = TransformersSampler(
        exported,
        eos_token_id=sampler._config.eos_token_id,
        pad_token_id=sampler._pad,
        max_new_tokens=_REPLY_TOKENS,
        temperature=sampler.temperature,
    )
    specs = [EpisodeSpec(seed) for seed in (1, 3)]
    of_policy = trainer.rollout.play(specs)
    of_exported = replace(trainer.rollout, sampler=twin).play(specs)
    for first, second in zip(of_policy, of_exported, strict=True):
        assert [turn.reply for turn in first.turns] == [turn.reply for turn in second.turns]
        for turn, other in zip(first.turns, second.turns, strict=True):
            torch.testing.assert_close(
                torch.tensor(turn.logprobs), torch.tensor(other.logprobs), atol=1e-4, rtol=1e-4
            )
