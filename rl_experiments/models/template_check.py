"""Tries a chat template on an environment's messages, before a model is loaded or played."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from transformers import PreTrainedTokenizerBase

from environments import Environment, training_seed
from rl_experiments.rollout.chat_template import ChatTemplate
from rl_experiments.rollout.episode import Episode, take_scripted_turn
from rl_experiments.rollout.renderer import ChatTurn, Renderer
from rl_experiments.rollout.types import EpisodeSpec, Trajectory

_MAX_TURNS = 3  # that are played to see which roles come


def check_template(
    tokenizer: PreTrainedTokenizerBase, environment: Environment, *, seed: int
) -> list[str]:
    """Render every role and form that the environment needs; return notes for the user.

    Raises an `UnusableTemplate`, one line with the template's own words, if one cannot be rendered.
    """
    episode = _sample_episode(environment, seed)
    if not episode.turns:
        return []  # the environment fails, which its episodes will say
    renderer = Renderer(tokenizer, episode.system_prompt, episode.tools)
    roles = _roles_of_observations(episode, environment)
    for role in roles:
        renderer.frame(role)
    if not renderer.joins_pieces:
        return []  # the tiny model, whose template and tokens are made for its environment
    return list(_notes(renderer, episode, roles))


def _sample_episode(environment: Environment, seed: int) -> Trajectory:
    """Return the beginning of an episode of the random policy; of a slow one the observation."""
    episode = Episode(environment, EpisodeSpec(training_seed(seed, 0)))
    policy = environment.baselines.get("random")
    rng = Random(seed)
    turns = 0 if environment.is_slow or policy is None else _MAX_TURNS
    for _ in range(turns):
        if not episode.over and policy is not None:
            take_scripted_turn(episode, policy, rng)
    return episode.trajectory


def _roles_of_observations(episode: Trajectory, environment: Environment) -> list[str]:
    """Return the roles of the observations after replies, as far as can be known beforehand."""
    roles = [turn.role for turn in episode.turns[1:]]
    if roles or environment.is_slow:
        roles.append("user")
        if episode.tools:
            roles.append("tool")
    return list(dict.fromkeys(roles))


def _notes(renderer: Renderer, episode: Trajectory, roles: list[str]) -> Iterator[str]:
    tokenizer = renderer.tokenizer
    template = ChatTemplate(tokenizer, episode.system_prompt, episode.tools)
    label = f"model.path={tokenizer.name_or_path}"
    if not template.shows_tools:
        yield f"{label}: its chat template does not show the tools to the model"
    if any(template.rewrites_history(role) for role in roles):
        yield (
            f"{label}: its chat template writes earlier turns otherwise than they were played; "
            "here they stay as they were played"
        )
    observation = episode.turns[0].observation
    whole = tokenizer(template.chat(observation), add_special_tokens=False)["input_ids"]
    prompt = renderer.prompt([ChatTurn(observation)])
    if list(whole) != prompt:
        place = next(
            (i for i, (a, b) in enumerate(zip(whole, prompt, strict=False)) if a != b),
            min(len(whole), len(prompt)),
        )
        yield (
            f"{label}: the tokens of a prompt are not those of its chat template tokenised as a "
            f"whole (from token {place} on)"
        )
