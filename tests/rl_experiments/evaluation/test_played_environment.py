"""Which environment is played without training: the plain one, or that of a checkpoint's run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import modal
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra_modal_jobs import LaunchRefused
from omegaconf import DictConfig, OmegaConf

from rl_experiments.commands.play import play
from rl_experiments.config.overrides import expand_shorthand
from rl_experiments.config.registration import register
from rl_experiments.errors import UserError
from rl_experiments.evaluation.played_environment import (
    difference_from_training,
    played_environment,
)
from rl_experiments.paths import CONF_DIR
from rl_experiments.preflight import compose_and_check
from tests.fakes.control_plane import ControlPlane
from tests.fakes.plane_app import plane

__all__ = ["plane"]  # a fixture


def composed(*overrides: str) -> DictConfig:
    register()
    words = [expand_shorthand(word) for word in overrides]
    words += played_environment(words)
    with initialize_config_dir(version_base=None, config_dir=str(CONF_DIR)):
        return compose("config", ["name=test", *words])


def plain(env: str) -> Any:
    return OmegaConf.load(CONF_DIR / f"env/{env}.yaml")


@pytest.fixture(scope="module")
def settings() -> str:
    """Return the settings of a run of the tiny model on its variant of Wordle, with own guesses."""
    register()
    with initialize_config_dir(version_base=None, config_dir=str(CONF_DIR)):
        return OmegaConf.to_yaml(compose("config", ["name=test", "env=wordle", "env.guesses=5"]))


@pytest.fixture
def run(settings: str, tmp_path: Path) -> Path:
    """Return the folder of that run."""
    folder = tmp_path / "runs/r"
    (folder / "0/checkpoints/checkpoint-8").mkdir(parents=True)
    (folder / "0/config.yaml").write_text(settings)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("env", ["wordle", "bfcl_single_turn", "game2048", "tool_test"])
@pytest.mark.parametrize("more", ["policies=[random,qwen2_5_0_5b]", "policy=random", "seed=1"])
def test_without_a_model_the_environment_is_the_plain_one(env: str, more: str) -> None:
    assert composed(f"env={env}", more).env == plain(env)


@pytest.mark.slow
def test_the_variant_is_played_where_it_is_named() -> None:
    variant = composed("env=wordle", "model=tiny").env
    assert (variant.words, variant.variant) == ("tiny", "tiny")
    assert composed("env=wordle", "variant=wordle_tiny", "policy=random").env == variant
    assert composed("env=wordle", "variant=plain", "model=tiny").env == plain("wordle")
    assert composed("env=wordle", "model=qwen2_5_0_5b").env == plain("wordle")


@pytest.mark.slow
def test_play_and_audit_compose_the_plain_environment(
    capsys: pytest.CaptureFixture[str],
) -> None:
    register()
    words = ["env=bfcl_single_turn", "policy=random"]
    assert compose_and_check(words, example="", name="x").config.env == plain("bfcl_single_turn")
    play(["env=game2048", "policy=random", "env.max_moves=1", "variant=game2048_tiny"])
    assert "Environment: game2048 (variant game2048_tiny): " in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["", "0", "0/checkpoints/checkpoint-8"])
def test_a_checkpoint_plays_the_environment_of_its_run(run: Path, folder: str) -> None:
    trained = OmegaConf.load(run / "0/config.yaml").env
    path = str(run / folder)
    env = composed(f"checkpoint={path}").env
    assert env == trained and env.words == "tiny" and env.guesses == 5
    assert difference_from_training(path, env) is None
    assert composed(f"checkpoint={path}", "model=tiny").env == trained


@pytest.mark.slow
def test_what_the_command_line_says_goes_first_and_the_difference_is_shown(run: Path) -> None:
    env = composed(f"checkpoint={run}", "env.guesses=3").env
    assert env == {**OmegaConf.load(run / "0/config.yaml").env, "guesses": 3}
    assert difference_from_training(str(run), env) == (
        f"{run} plays settings that differ from those of its training: "
        "env.guesses=3 (trained with 5)"
    )
    other = composed(f"checkpoint={run}", "env=game2048").env
    assert other == plain("game2048")
    assert difference_from_training(str(run), other) == (
        f"{run} was trained on wordle (variant wordle_tiny); it plays game2048"
    )
    assert composed(f"checkpoint={run}", "env=wordle").env == plain("wordle")


@pytest.mark.slow
@pytest.mark.parametrize(
    "value",
    [
        *(
            'it\'s "new"',
            "a, b = {c}",
            "back\\slash",
            "ends\\",
            "",
            "null",
            "1",
            "\u00fcber",
            " x ",
        ),
        *(["a", "b c"], [], {"min": 1, "names": ["x y"]}, None, True, 0.5, -3),
    ],
)
def test_any_setting_of_a_run_reaches_its_evaluation(run: Path, value: Any) -> None:
    config = OmegaConf.load(run / "0/config.yaml")
    config.env.words = value
    (run / "0/config.yaml").write_text(OmegaConf.to_yaml(config))
    words = played_environment([f"checkpoint.path={run}"])
    parsed = OverridesParser.create().parse_overrides(words)
    assert {each.key_or_group: each.value() for each in parsed}["env.words"] == value


@pytest.mark.parametrize("content", ["", "env: 3", "env: {a: b}", "{", "[1]"])
def test_a_folder_of_no_run_changes_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.yaml").write_text(content)
    assert played_environment([f"checkpoint.path={tmp_path}"]) == ["variant=plain"]


def test_a_checkpoint_in_a_store_plays_the_environment_of_its_run(
    run: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store/models/r-0/000008"
    (store / "run").mkdir(parents=True)
    (store / "manifest.json").write_text("{}")
    trained = OmegaConf.load(run / "0/config.yaml").env
    for address in (store, store.parent):
        url = f"file://{address}"
        line = "does not say which environment it was trained on; it plays that of the command line"
        assert played_environment([f"checkpoint.path={url}"]) == ["variant=plain"]
        assert difference_from_training(url, plain("game2048")) == f"{url} {line}"
        (store / "run/config.yaml").write_text((run / "0/config.yaml").read_text())
        words = played_environment([f"checkpoint.path={run}"])
        assert played_environment([f"checkpoint.path={url}"]) == words
        assert difference_from_training(url, trained) is None
        assert difference_from_training(url, {**trained, "guesses": 3}) == (
            f"{url} plays settings that differ from those of its training: "
            "env.guesses=3 (trained with 5)"
        )
        (store / "run/config.yaml").unlink()


@pytest.mark.slow
def test_a_checkpoint_on_the_volume_plays_the_environment_of_its_run(
    run: Path, plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPERIMENTER", "me")
    monkeypatch.setenv("EXPERIMENT_NAME", "tests")
    # Without a volume the run is not known: the environment of the command line is played.
    assert played_environment(["checkpoint.path=/outputs/r/0", "gpu=a10g"]) == []
    name = "rl-experiments-outputs-me-tests"
    modal.Volume.from_name(name, create_if_missing=True).hydrate()
    shutil.copytree(run, plane.volumes[name].folder / "r")
    trained = played_environment([f"checkpoint.path={run}"])
    for path in ("/outputs/r", "/outputs/r/0", "/outputs/r/0/checkpoints/checkpoint-8"):
        assert played_environment([f"checkpoint.path={path}", "gpu=a10g"]) == trained
    assert played_environment(["policies=[random,/outputs/r/0]", "gpu=a10g"]) == trained


@pytest.mark.slow
def test_a_volume_that_cannot_be_read_asks_for_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*arguments: Any) -> None:
        raise LaunchRefused("Modal cannot be reached (no answer); nothing was started")

    monkeypatch.setattr("hydra_modal_jobs.backends.modal_volume.read_output", refuse)
    with pytest.raises(UserError) as raised:
        composed("checkpoint=/outputs/r/0", "gpu=a10g")
    assert str(raised.value) == (
        "/outputs/r/0: the environment of its run cannot be read (Modal cannot be reached (no "
        "answer); nothing was started); name it with env=..."
    )


@pytest.mark.slow
def test_runs_among_the_policies_are_judged_on_their_environment(run: Path) -> None:
    trained = played_environment([f"checkpoint.path={run}"])
    assert played_environment([f"policies=[random,{run},qwen2_5_0_5b]"]) == trained
    other = run.parent / "other"
    shutil.copytree(run, other)
    assert played_environment([f"policies=[{run},{other}]"]) == trained
    (other / "0/config.yaml").write_text(
        (run / "0/config.yaml").read_text().replace("guesses: 5", "guesses: 6")
    )
    for words in (f"policies=[{run},{other}]", f"checkpoint={run},{other}"):
        with pytest.raises(UserError, match=r"environments that differ .* with env="):
            played_environment([expand_shorthand(words)])
        assert played_environment([expand_shorthand(words), "env=wordle"]) == ["variant=plain"]
