"""What Hydra and OmegaConf say becomes one line, which names the setting."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hydra import compose, initialize_config_dir
from hydra_modal_jobs.errors import JobFailed

from rl_experiments.config.messages import explain_config_error
from rl_experiments.config.registration import register
from rl_experiments.errors import UserError
from rl_experiments.paths import CONF_DIR


@pytest.fixture(autouse=True)
def hydra() -> Iterator[None]:
    register()
    with initialize_config_dir(version_base=None, config_dir=str(CONF_DIR)):
        yield


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("env=game2049", "env=game2049: no such choice; did you mean game2048?"),
        ("seeed=1", "seeed: no such setting; did you mean seed?"),
        (
            "trainer.max_step=1",
            "trainer.max_step: no such setting; did you mean trainer.max_steps?",
        ),
        (
            "trainer.extra.top_k=5",
            "trainer.extra.top_k: no such setting; to pass it to TRL write "
            "+trainer.extra.top_k=...",
        ),
        (
            "env=[a,b",
            "env=[a,b: cannot be read; quote it, or see Hydra's override grammar",
        ),
        (
            "model.scratch.hidden_size=8",
            "model.scratch.hidden_size: model.scratch is null in this configuration, so it has no "
            "settings",
        ),
    ],
)
def test_an_override_that_cannot_be_applied_is_named(override: str, line: str) -> None:
    with pytest.raises(Exception) as raised:
        compose("config", ["name=x", "gpu=a10g", override])
    assert explain_config_error(raised.value) == line


def test_a_value_of_the_wrong_type_is_named_with_the_type() -> None:
    with pytest.raises(Exception) as raised:
        compose("config", ["name=x", "trainer.max_steps=many"])
    line = explain_config_error(raised.value)
    assert line is not None and line.startswith("trainer.max_steps: ")
    assert "'many'" in line and "Integer" in line and "\n" not in line


def test_a_message_that_is_written_for_the_user_stays_as_it_is() -> None:
    for error in (UserError("seed=-1: must be from 0"), JobFailed("1 of 2 jobs did not finish")):
        assert explain_config_error(error) == str(error)


def test_an_error_of_something_else_is_not_explained() -> None:
    for error in (ValueError("seed"), AssertionError("Unexpected type for root: NoneType")):
        assert explain_config_error(error) is None
