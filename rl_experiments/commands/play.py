"""The `play` verb: play an environment in the terminal, or watch a policy play it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from random import Random

from rich.console import Console

from environments import Environment, evaluation_seed
from rl_experiments.config.experiment import Experiment, evaluation_temperature
from rl_experiments.config.overrides import override_texts
from rl_experiments.config.schema import SamplerKind
from rl_experiments.errors import UserError
from rl_experiments.evaluation.own_limits import with_own_limits
from rl_experiments.evaluation.played_environment import environment_lines
from rl_experiments.evaluation.policies import is_api_model, resolve_policies
from rl_experiments.preflight import compose_and_check
from rl_experiments.rollout.episode import Episode, take_scripted_turn
from rl_experiments.rollout.types import EpisodeSpec
from rl_experiments.terminal.text import printable

_PAUSE_SECONDS = 0.5  # between the turns of a policy that is watched in a terminal

TakeTurn = Callable[[Episode], None]  # replies to the latest observation of the episode


def play(overrides: list[str]) -> None:
    """Play one evaluation seed after another, from index `seed` on, until the player leaves."""
    experiment = compose_and_check(
        overrides, example="env=game2048 policy=random seed=3", name="play"
    )
    names_a_model = not {"checkpoint.path", "model"}.isdisjoint(override_texts(overrides))
    is_by_hand = not experiment.config.policy and not names_a_model
    console = Console()
    for line in environment_lines(experiment.config):
        _print_text(console, line, style="dim")
    if not is_by_hand:
        [policy] = resolve_policies(experiment.config, experiment.environment)
        policy = with_own_limits(policy, experiment.config, overrides)
        experiment = replace(experiment, config=policy.config)
    take_turn = _person(console) if is_by_hand else _policy(experiment, console)
    index = experiment.config.seed
    try:
        _play_episode(experiment.environment, index, take_turn, console)
        # A policy that is watched through a pipe plays one episode: nobody answers questions.
        while (is_by_hand or console.is_terminal) and _is_confirmed(console, "Another?"):
            index += 1
            _play_episode(experiment.environment, index, take_turn, console)
    except (KeyboardInterrupt, EOFError):
        console.print()


def _play_episode(
    environment: Environment, index: int, take_turn: TakeTurn, console: Console
) -> None:
    episode = Episode(environment, EpisodeSpec(evaluation_seed(index)))
    trajectory = episode.trajectory
    console.rule(f"evaluation episode {index}")
    for text in (trajectory.system_prompt, *(trajectory.tools or ())):
        _print_text(console, text, style="dim")
    while not episode.over:
        turn = trajectory.turns[-1]
        _print_text(console, f"\n{turn.observation}")
        take_turn(episode)
        _print_text(console, f"> {turn.reply}   reward {turn.reward:+.3f}")
    reward = "no reward" if trajectory.reward is None else f"reward {trajectory.reward:.3f}"
    end = f"\n{trajectory.end}: {reward} after {len(trajectory.turns)} turns"
    _print_text(console, end, style="bold")
    if trajectory.error:
        _print_text(console, trajectory.error)
    _print_text(
        console, "  ".join(f"{name} {value:g}" for name, value in trajectory.metrics.items())
    )


def _print_text(console: Console, text: object, *, style: str | None = None) -> None:
    """Print the text as it is, without markup and without line breaks of our own."""
    text = printable(text) if isinstance(text, str) else text
    console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


def _person(console: Console) -> TakeTurn:
    """Return a player that asks for each reply in the terminal."""
    console.print("Type your reply; Ctrl-C leaves.", style="dim")

    def take_turn(episode: Episode) -> None:
        episode.reply(episode.environment.reply_from_input(console.input("reply: ")))

    return take_turn


def _policy(experiment: Experiment, console: Console) -> TakeTurn:
    """Return a player for the scripted policy, the checkpoint or the model of the settings."""
    config = experiment.config
    pause_seconds = _PAUSE_SECONDS if console.is_terminal else 0.0
    if config.policy:
        scripted = experiment.environment.baselines[config.policy]
        rng = Random(config.seed)

        def watch_scripted_turn(episode: Episode) -> None:
            time.sleep(pause_seconds)
            take_scripted_turn(episode, scripted, rng)

        return watch_scripted_turn

    if is_api_model(config):
        raise UserError("model.base_url: play watches models that run here; see evaluate")
    with console.status("loading the model"):
        from rl_experiments.models.policy import load_policy

        config.sampler = SamplerKind.transformers  # one turn at a time needs no engine
        policy = load_policy(config, experiment.environment)
    rollout = policy.rollout(
        config, experiment.environment, temperature=evaluation_temperature(config)
    )

    def watch_model_turn(episode: Episode) -> None:
        time.sleep(pause_seconds)
        rollout.take_turn(episode)

    return watch_model_turn


def _is_confirmed(console: Console, question: str) -> bool:
    return console.input(f"{question} [Y/n] ").strip().lower() in ("", "y", "yes")
