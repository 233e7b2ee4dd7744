"""Which settings of the engine are used."""

from __future__ import annotations

import pytest
from hydra import compose, initialize_config_dir

from rl_experiments.config.registration import register
from rl_experiments.models.policy import without_effect
from rl_experiments.paths import CONF_DIR
from rl_experiments.preflight import check


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "note"),
    [
        (
            ["vllm.tool_call_parser=hermes"],
            "vllm.tool_call_parser has no effect with vllm.mode=colo",
        ),
        (["vllm.mode=server", "vllm.sleep=true"], "vllm.sleep has no effect with vllm.mode=server"),
        (["sampler=transformers", "vllm.block_size=64"], "vllm.block_size has no effect with samp"),
        (["vllm.block_size=64", "vllm.enforce_eager=true"], ""),
    ],
)
def test_a_setting_without_effect_in_the_mode_is_noted(overrides: list[str], note: str) -> None:
    register()
    with initialize_config_dir(version_base=None, config_dir=str(CONF_DIR)):
        cfg = compose("config", ["name=x", "sampler=vllm", *overrides])
    notes = [f"{name} has no effect {why}" for name, why in without_effect(check(cfg).config)]
    assert len(notes) == bool(note) and all(each.startswith(note) for each in notes)
