"""The adapter of reasoning-gym: scores, the split, answers that could run as code."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from random import Random
from statistics import mean

import pytest

from environments import End, evaluation_seed, training_seed
from environments.adapters import ReasoningGym
from environments.adapters.reasoning_gym.items import (
    HARMLESS_ANSWERS,
    REFUSED_DATASETS,
    Item,
    Source,
)
from environments.adapters.replies import last_element
from tests.environments.adapters.playing import SKILLLESS, needs, played, reward


@needs("reasoning_gym")
def test_questions_are_scored_by_their_dataset() -> None:
    env = ReasoningGym(dataset="chain_sum+letter_counting", options={"chain_sum": {"min_terms": 3}})
    seen = set()
    for index in range(30):
        right = played(env, "oracle", evaluation_seed(index), rng=Random(0))[0]
        assert (right.end, right.reward, right.metrics["win"]) == (End.WON, 1.0, 1.0)
        seen.add(env.category)
    assert seen == {"chain_sum", "letter_counting"}
    other = [reward(played(env, "random", index, rng=Random(index))) for index in range(60)]
    assert mean(other) < 0.4
    for reply in SKILLLESS:
        earned = []
        for index in range(40):
            env.reset(evaluation_seed(2 * index))
            step = env.step(reply)
            earned.append(step.reward)
            assert (step.end is End.INVALID) == (last_element("answer", reply) in (None, ""))
        assert mean(earned) < 0.1, reply


@needs("reasoning_gym")
def test_no_question_is_in_both_parts_and_an_epoch_shows_all_numbers() -> None:
    env = ReasoningGym(dataset="coin_flip", items=60)
    training = [env.reset(training_seed(0, index)) for index in range(120)]
    held_out = {env.reset(evaluation_seed(index)) for index in range(60)}
    assert not set(training) & held_out and len(held_out) > 20
    assert training[:60] == training[60:]


@pytest.mark.slow
@needs("reasoning_gym")
def test_no_answer_is_run_as_code(tmp_path: Path) -> None:
    library = Path(str(import_module("reasoning_gym").__file__)).parent
    runs = re.compile(r"(?:eval|parse_expr|sympify|exec)\(answer")
    for path in library.rglob("*.py"):
        if runs.search(path.read_text()):
            assert path.stem in {*HARMLESS_ANSWERS, *REFUSED_DATASETS}, path
    trace = tmp_path / "trace"
    attack = f"open({str(trace)!r}, 'w').close()"
    for name in HARMLESS_ANSWERS:
        env = ReasoningGym(dataset=name, items=20)
        for answer in (
            attack,
            f"[{attack}]",
            "9**9**9**9",
            "9**(9**9)",
            "(" * 150,
            "oracle_answer",
            "answer",
        ):
            env.reset(0)
            assert env.step(f"<answer>{answer}</answer>").reward < 0.2
        assert mean(reward(played(env, "oracle", seed, rng=Random(0))) for seed in range(2)) == 1
    assert not trace.exists()


@needs("reasoning_gym")
def test_an_index_without_an_item_is_skipped() -> None:
    library = import_module("reasoning_gym")
    with pytest.raises(RuntimeError, match="suitable path cell"):
        library.create_dataset("maze", seed=0, size=20_000)[5843]
    source = Source("maze", {}, count=5000)
    assert all("Navigate" in source.item(5843, held_out=part).question for part in (False, True))


@needs("reasoning_gym")
@pytest.mark.parametrize(
    "dataset, numbers, target, right, wrong",
    [
        ("countdown", [5, 3], 8, ["5+3", " (3 + 5)"], ["5+3+3-3", "8", "+5", "5+3;", "5+3+0"]),
        ("countdown", [7, 2], 3, [], ["7//2", "7/2", "7//2*1"]),
        ("countdown", [8, 2, 2], 2, ["8/2/2", "8//2//2"], ["8//3", "8/2-2+0"]),
        ("puzzle24", [3, 9, 8, 1], 24, ["9*8//3*1", "9*8/3*1"], ["6*4*1*1", "3*8*1"]),
        ("puzzle24", [5, 5, 1, 2], 24, ["5*5-2+1"], ["5*5-1/2", "(5*5-1)//1"]),
        ("puzzle24", [9, 2, 6, 1], 24, [], ["9//2*6*1", "9-2*6", "9**2"]),
    ],
)
def test_a_sum_wins_only_if_it_is_exact_and_uses_each_number_once(
    dataset: str, numbers: list[int], target: int, right: list[str], wrong: list[str]
) -> None:
    metadata = {"numbers": numbers, "target": target}
    item = Item("?", "x" * 50, {"question": "?", "answer": "", "metadata": metadata})
    source = Source(dataset, {}, count=4)
    assert [source.score(text, item) for text in right] == [1] * len(right)
    assert all(source.score(text, item) < 0.1 for text in wrong)
