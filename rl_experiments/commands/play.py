"""The `play` verb: an environment in the terminal, by hand or by a policy that is watched."""

from __future__ import annotations

import time
from collections.abc import Callable
from random import Random

from rich.console import Console

from environments import Environment, evaluation_seed
from rl_experiments.config.experiment import Experiment
from rl_experiments.config.schema import SamplerKind
from rl_experiments.errors import UserError
from rl_experiments.evaluation.policies import is_api_model
from rl_experiments.preflight import composed
from rl_experiments.rollout.episodes import Episode, EpisodeSpec

_PAUSE = 0.5  # seconds between the moves of a watched policy, in a terminal


def play(overrides: list[str]) -> None:
    """One episode after another on evaluation seeds, from `seed` on, until the player leaves."""
    given = [word.split("=")[0] for word in overrides]
    experiment = composed(overrides, example="env=game2048 policy=random seed=3", name="play")
    console = Console()
    by_hand = not experiment.config.policy and not ({"checkpoint.path", "model"} & set(given))
    take_turn = _person(console) if by_hand else _policy(experiment, console)
    index = experiment.config.seed
    try:
        _episode(experiment.environment, index, take_turn, console)
        # Somebody who watches through a pipe gets one episode.
        while (by_hand or console.is_terminal) and _yes(console, "Another?"):
            index += 1
            _episode(experiment.environment, index, take_turn, console)
    except (KeyboardInterrupt, EOFError):
        console.print()


def _episode(
    environment: Environment, index: int, take_turn: Callable[[Episode], None], console: Console
) -> None:
    episode = Episode(environment, EpisodeSpec(evaluation_seed(index)))
    console.rule(f"evaluation episode {index}")
    for text in (episode.trajectory.system_prompt, *(episode.trajectory.tools or ())):
        console.print(text, style="dim", highlight=False, markup=False)
    while not episode.over:
        turn = episode.trajectory.turns[-1]
        console.print(f"\n{turn.observation}", highlight=False, markup=False)
        take_turn(episode)
        console.print(f"> {turn.reply}   reward {turn.reward:+.3f}", highlight=False, markup=False)
    trajectory = episode.trajectory
    reward = "no reward" if trajectory.reward is None else f"reward {trajectory.reward:.3f}"
    console.print(f"\n{trajectory.end}: {reward} after {len(trajectory.turns)} turns", style="bold")
    if trajectory.error:
        console.print(trajectory.error, markup=False)
    metrics = "  ".join(f"{name} {value:g}" for name, value in trajectory.metrics.items())
    console.print(metrics, highlight=False)


def _person(console: Console) -> Callable[[Episode], None]:
    console.print("Type your reply; Ctrl-C leaves.", style="dim")

    def by_hand(episode: Episode) -> None:
        episode.reply(episode.environment.reply_from_input(console.input("reply: ")))

    return by_hand


def _policy(experiment: Experiment, console: Console) -> Callable[[Episode], None]:
    """The scripted policy, the checkpoint or the model."""
    config = experiment.config
    pause = _PAUSE if console.is_terminal else 0.0
    if config.policy:
        scripted = experiment.environment.baselines[config.policy]
        rng = Random(config.seed)

        def by_script(episode: Episode) -> None:
            time.sleep(pause)
            episode.reply(scripted(episode.environment, rng))

        return by_script

    if is_api_model(config):
        raise UserError("model.base_url: play watches models that run here; see evaluate")
    with console.status("loading the model"):
        from rl_experiments.config.experiment import evaluation_temperature
        from rl_experiments.models.policy import load_policy

        config.sampler = SamplerKind.transformers  # one turn at a time needs no engine
        policy = load_policy(config, experiment.environment)
    temperature = evaluation_temperature(config)
    rollout = policy.rollout(config, experiment.environment, temperature=temperature)

    def by_model(episode: Episode) -> None:
        time.sleep(pause)
        rollout.take_turn(episode)

    return by_model


def _yes(console: Console, question: str) -> bool:
    return console.input(f"{question} [Y/n] ").strip().lower() in ("", "y", "yes")
