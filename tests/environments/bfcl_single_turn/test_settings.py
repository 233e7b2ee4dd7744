"""The settings of BFCL: the YAML, and errors that name a setting."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest
from omegaconf import DictConfig, OmegaConf

from environments import End, Environment
from environments.bfcl_single_turn import BfclSingleTurn
from tests.environments.bfcl_single_turn.cases import (
    TRIANGLE,
    case_of,
    needs_bfcl,
    playing,
)
from tests.support.paths import CHECKOUT

BAD = """categories=[wordle] categories=[] categories=[multi_turn] evaluation_share=0
evaluation_share=1 max_prompt_chars=0 max_prompt_chars=1.5 max_prompt_chars=true keep_unwinnable=7
official_weight=nan partial_weight=inf invalid_penalty=-0.1 invalid_penalty=x"""


@needs_bfcl
@pytest.mark.parametrize("setting", BAD.split())
def test_a_wrong_setting_is_named(setting: str) -> None:
    chosen = {str(name): value for name, value in OmegaConf.from_dotlist([setting]).items()}
    with pytest.raises(ValueError, match=rf"\Aenv\.{setting.split('=')[0]}=.*: must be .*\Z"):
        BfclSingleTurn(**chosen)


@needs_bfcl
def test_a_choice_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("env.categories=['simple_java']: must be such")):
        BfclSingleTurn(categories=["simple_java"], max_prompt_chars=10)


@needs_bfcl
def test_the_yaml_has_the_settings_of_the_class() -> None:
    names = [field.name for field in fields(BfclSingleTurn)]
    stored = OmegaConf.load(CHECKOUT / "conf/env/bfcl_single_turn.yaml")
    assert isinstance(stored, DictConfig) and {*stored} == {"name", "_target_", *names}
    chosen = OmegaConf.masked_copy(stored, names)
    env = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(BfclSingleTurn), chosen))
    assert env == BfclSingleTurn() and isinstance(env, Environment)
    assert env.recommended_model == "xlam_2_3b_fc_r"
    cut = playing(case_of(TRIANGLE)).truncate()
    assert (cut.end, cut.reward, cut.metrics["official"]) == (End.TRUNCATED, 0.0, 0.0)
