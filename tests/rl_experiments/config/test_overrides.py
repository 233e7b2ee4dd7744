"""The overrides of a command line, as Hydra's grammar reads them."""

from __future__ import annotations

import pytest

from rl_experiments.config.overrides import expand_shorthand, override_texts


def test_the_text_of_each_override_is_as_it_was_typed() -> None:
    words = ["env=game2048,wordle", "++seed=3", "+name=1e3", "~logger", "policies=[random, a]"]
    assert override_texts(words) == {
        "env": "game2048,wordle",
        "seed": "3",
        "name": "1e3",
        "logger": "",
        "policies": "[random, a]",
    }


def test_words_that_hydra_cannot_parse_are_left_for_it_to_report() -> None:
    assert override_texts(["env=[a,b", "seed=1", "--cfg"]) == {"seed": "1"}


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("checkpoint=runs/a/0", "checkpoint.path=runs/a/0"),
        ("checkpoint.store=s3://a/b", "checkpoint.store=s3://a/b"),
        ("env=vf-wordle", "env=wordle"),
        ("env=VF_Wordle,game2048", "env=wordle,game2048"),
        ("env=tool-test", "env=tool_test"),
        ("env=of-another-package", "env=of-another-package"),
        ("env.words=vf-wordle", "env.words=vf-wordle"),
        ("--help", "--help"),
    ],
)
def test_shorthands_are_expanded(typed: str, meant: str) -> None:
    assert expand_shorthand(typed) == meant


def test_an_old_name_is_mentioned(capsys: pytest.CaptureFixture[str]) -> None:
    assert expand_shorthand("env=vf-tool-test") == "env=tool_test"
    assert capsys.readouterr().err == "env=vf-tool-test: an old name; it is tool_test now\n"
