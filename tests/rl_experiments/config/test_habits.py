"""What people type by habit is understood, or refused in a line that says what to write."""

from __future__ import annotations

import pytest

from rl_experiments.cli import VERBS
from rl_experiments.config.habits import (
    options_first,
    refuse_stray_words,
    refuse_ways_around_the_launcher,
    starts_a_run,
    typed_name,
    without_name,
)
from rl_experiments.errors import UserError


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (["--gpu=a10g"], "write gpu=a10g"),
        (["plan", "--max-usd", "5"], "write max_usd=5"),
        (["--lr"], "without dashes"),
        (["--multi"], "did you mean --multirun?"),
        (["plan", "seed", "=", "3"], "seed = 3: write seed=3, without spaces"),
        (["plan", "seed=", "3"], "write seed=3, without spaces"),
        (["seed", "=3"], "write seed=3, without spaces"),
        (["trainer.learning_rate=1e-6,", "3e-6"], "without spaces, or in quotes"),
        (["evaluate", "runs/X/0"], "write checkpoint=runs/X/0"),
        (["Train"], "did you mean train?"),
        (["ls"], "did you mean runs?"),
        (["eval"], "did you mean evaluate?"),
        (["train.py"], "neither a verb"),
        (["3"], "neither a verb"),
        (["evaluate=true"], "evaluate is a verb"),
    ],
)
def test_a_stray_word_is_refused(typed: list[str], says: str) -> None:
    with pytest.raises(UserError) as refused:
        refuse_stray_words(typed, VERBS)
    assert says in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    "typed",
    [
        ["plan", "evaluate", "policy=random", "-m"],
        ["--cfg", "job", "--resolve"],
        ["--cfg", "hydra", "-p", "hydra.launcher"],
        ["-cd", "myconf", "env=mine"],
        ["--config-dir=.", "plan"],
        ["~logger", "+a.b=[1, 2]", "policies=[random, a/b]", "seed=1,2"],
        ["--info"],
        ["hydra.mode=MULTIRUN", "hydra/launcher=rl", "hydra.launcher.backend=debug"],
    ],
)
def test_what_hydra_understands_passes(typed: list[str]) -> None:
    refuse_stray_words(typed, VERBS)
    refuse_ways_around_the_launcher(typed)


@pytest.mark.parametrize(
    "typed",
    [
        *("-r", "--run", "--experimental-rerun=x", "hydra.mode=RUN", "+hydra.mode=run"),
        *("hydra/launcher=basic", "'hydra/launcher'=joblib", "hydra.launcher._target_=a.B"),
    ],
)
def test_no_way_leads_around_the_launcher(typed: str) -> None:
    with pytest.raises(UserError, match="without gpu, plan and budget"):
        refuse_ways_around_the_launcher(["evaluate", typed.replace("'", ""), "policy=random"])


def test_a_name_is_read_as_it_is_typed() -> None:
    for typed in ("name=1e-5", "++name=1e-5", "+name='1e-5'", 'name="1e-5"'):
        assert typed_name(["seed=1", typed]) == "1e-5"
        assert without_name(["seed=1", typed, "env.name=a"]) == ["seed=1", "env.name=a"]
    assert typed_name(["name=a", "name=b"]) == "b"
    assert typed_name(["env.name=a"]) is None


def test_a_folder_of_settings_may_be_named_anywhere_on_the_line() -> None:
    words = ["env=mine", "-cd", "myconf", "seed=1", "--config-name=mine", "-m"]
    assert options_first(words) == [
        "-cd",
        "myconf",
        "--config-name=mine",
        "-m",
        "env=mine",
        "seed=1",
    ]
    assert starts_a_run(words)
    for question in ("--help", "-h", "--cfg=job", "-c", "--info", "-sc", "--hydra-help"):
        assert not starts_a_run([*words, question])
