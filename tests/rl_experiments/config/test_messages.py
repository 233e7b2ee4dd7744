"""What Hydra and OmegaConf say becomes one line, which names the setting."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra_modal_jobs.errors import JobFailed

from rl_experiments.config.messages import explain_config_error
from rl_experiments.config.registration import register
from rl_experiments.errors import UserError
from rl_experiments.paths import CONF_DIR

NO_INT = " could not be converted to Integer"


@pytest.fixture(autouse=True)
def hydra() -> Iterator[None]:
    register()
    with initialize_config_dir(version_base=None, config_dir=str(CONF_DIR)):
        yield


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "line"),
    [
        (
            "trainer.max_steps=many",
            "trainer.max_steps: Value 'many' of type 'str'" + NO_INT,
        ),
        (
            "trainer.max_steps=1e3",
            f"trainer.max_steps: Value '1000.0' of type 'float'{NO_INT}; "
            "write trainer.max_steps=1000",
        ),
        (
            "gpu.timeout=4h",
            f"gpu.timeout: Value '4h' of type 'str'{NO_INT}; give seconds",
        ),
        (
            "gpu.memory=64GB",
            f"gpu.memory: Value '64GB' of type 'str'{NO_INT}; give MiB",
        ),
        (
            "budget.max_usd=five",
            "budget.max_usd: Value 'five' of type 'str' could not be converted to Float",
        ),
        (
            "logger.report_to=wandb",
            "logger.report_to: takes a list; write logger.report_to=[...]",
        ),
        (
            "env=[wordle,nope]",
            "env=[...]: give one, such as env=nope; env=a,b sweeps over both",
        ),
    ],
)
def test_a_value_of_the_wrong_type_is_named_with_the_type(override: str, line: str) -> None:
    with pytest.raises(Exception) as raised:
        compose("config", ["name=x", override])
    assert explain_config_error(raised.value) == line


@pytest.mark.slow
def test_what_a_setting_refers_to_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MY_RATE", raising=False)
    with pytest.raises(Exception) as raised:
        _ = compose("config", ["name=x", "seed=${oc.env:MY_RATE}"]).seed
    line = "MY_RATE: this environment variable is not set, but a setting has ${oc.env:MY_RATE}"
    assert explain_config_error(raised.value) == f"{line}; set it"
    (tmp_path / ".env").write_text("MY_RATE=3\n")
    assert explain_config_error(raised.value) == (
        f"{line}; .env is read by the jobs alone, so export it"
    )
    with pytest.raises(Exception) as raised:
        _ = compose("config", ["name=x", "seed=${nope}"]).seed
    assert explain_config_error(raised.value) == (
        "nope: no such setting, but another one refers to ${nope}"
    )


def test_a_message_that_is_written_for_the_user_stays_as_it_is() -> None:
    for error in (UserError("seed=-1: must be from 0"), JobFailed("1 of 2 jobs did not finish")):
        assert explain_config_error(error) == str(error)


def test_an_error_of_something_else_is_not_explained() -> None:
    for error in (ValueError("seed"), AssertionError("Unexpected type for root: NoneType")):
        assert explain_config_error(error) is None
