"""Wordle's settings: the YAML, errors, the prompt, the experiments."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from environments.wordle import Wordle
from rl_experiments.config.registration import register
from rl_experiments.paths import CONF_DIR
from rl_experiments.preflight import check
from tests.environments.wordle.playing import started


def test_the_prompt_and_the_categories() -> None:
    prompt = Wordle().system_prompt
    assert "<think>" in prompt and "<guess>crane</guess>" in prompt and "abaci" not in prompt
    tiny = Wordle(words="tiny", held_out=0.0, think=False, guesses=3)
    assert "<think>" not in tiny.system_prompt and "in 3 guesses" in tiny.system_prompt
    assert all(word in tiny.system_prompt for word in tiny.list.words)
    assert [started(word).category for word in ("crane", "abbey")] == ["distinct", "repeated"]


WRONG = """guesses=0 guesses=2.5 guesses=true guesses=101 forgiven=-1 earlier_turns=-1 think=7
any_letters=x held_out=1 held_out=-0.1 held_out=nan held_out=1e-09 exact_weight=-1
partial_weight=inf
turn_weight=nan format_weight=101 words=nowhere.txt words=/"""


@pytest.mark.parametrize("setting", WRONG.split())
def test_a_wrong_setting_is_named(setting: str) -> None:
    name, value = setting.split("=")
    with pytest.raises(ValueError, match=rf"(?i)\Aenv\.{name}={value}: must be .*\Z"):
        Wordle(**{str(k): v for k, v in OmegaConf.from_dotlist([setting]).items()})


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"crane\nslates\n", "line 2, 'slates', is not 5 letters from a to z"),
        (b"crane\n\nslate\n Crane\n", "line 4, 'crane', is a repetition"),
        (b"cr ne\nslate", "line 1, 'cr ne', is not 5 letters"),
        (b"crane\n", "must be a file with two words or more"),
        (b"", "must be a file with two words or more"),
        (b"cr\xffne\n", "must be english, tiny, or a text file with one word a line"),
    ],
)
def test_a_wrong_file_of_words_is_named(content: bytes, problem: str, tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_bytes(content)
    with pytest.raises(ValueError) as error:
        Wordle(words=str(file))
    assert str(error.value).startswith(f"env.words={file}: {problem}"), error.value
    assert "\n" not in str(error.value)


def test_the_yaml_has_the_settings_of_the_class() -> None:
    names = [field.name for field in fields(Wordle)]
    stored = OmegaConf.load(CONF_DIR / "env/wordle.yaml")
    assert isinstance(stored, DictConfig) and {*stored} == {"name", "_target_", *names}
    chosen = OmegaConf.masked_copy(stored, names)
    assert OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Wordle), chosen)) == Wordle()


@pytest.mark.slow
def test_the_experiments_compose() -> None:
    register()
    with initialize_config_dir(version_base=None, config_dir=str(CONF_DIR)):
        tiny = check(compose("config", ["env=wordle", "name=x"]))
        original = compose("config", ["experiment=wordle", "name=x"])
    assert isinstance(tiny.environment, Wordle) and not tiny.environment.think
    assert {*tiny.environment.list.training} == {*tiny.environment.list.evaluation}
    assert original.trainer.learning_rate == 3e-6 and original.vllm.block_size == 16
    assert "1.5B" in original.model.path and original.env.guesses == 6
