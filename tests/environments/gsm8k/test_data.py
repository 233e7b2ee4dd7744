"""The questions of GSM8K: the split, files, and what is wrong with a file."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from environments import evaluation_seed, training_seed
from environments.gsm8k import Gsm8k
from tests.environments.gsm8k.questions import ROWS, a_file


def shown_in(env: Gsm8k, seed: Callable[[int], int], count: int) -> list[str]:
    return [env.reset(seed(index)) for index in range(count)]


def test_an_epoch_shows_each_question_once_and_none_of_the_held_out(tmp_path: Path) -> None:
    doubled = [*ROWS, *ROWS[:50], {**ROWS[7], "question": ROWS[7]["question"].upper() + " "}]
    env = Gsm8k(a_file(tmp_path, doubled))
    sizes = len(env.questions.training), len(env.questions.evaluation)
    assert sum(sizes) == len(ROWS) and 5 <= sizes[1] <= 40
    training = shown_in(env, lambda index: training_seed(5, index), sizes[0])
    evaluation = shown_in(env, evaluation_seed, sizes[1])
    assert len({*training}) == sizes[0] and len({*evaluation}) == sizes[1]
    assert {*training, *evaluation} == {row["question"] for row in ROWS}
    assert training != sorted(training)
    # A question stays on its side when others come or go.
    half = Gsm8k(a_file(tmp_path, ROWS[::2], "half.jsonl")).questions
    assert {item.question for item in half.evaluation} <= {*evaluation}
    assert {item.question for item in half.training} <= {*training}
    # A small file has both parts all the same.
    held_out = [row for row in ROWS if row["question"] in evaluation]
    for name, rows in (("pair", ROWS[:2]), ("held_out", held_out[:2])):
        pair = Gsm8k(a_file(tmp_path, rows, f"{name}.jsonl")).questions
        assert len(pair.training) == len(pair.evaluation) == 1


def test_evaluation_questions_come_from_a_second_file(tmp_path: Path) -> None:
    held_out = [*ROWS[:5], {"question": "1 + 1?", "answer": 2, "source": "mine"}]
    env = Gsm8k(a_file(tmp_path, ROWS), a_file(tmp_path, held_out, "held_out.jsonl"))
    asked = {row["question"] for row in held_out}
    assert {*shown_in(env, evaluation_seed, 6)} == asked
    training = shown_in(env, lambda index: training_seed(0, index), 400)
    assert {*training} == {row["question"] for row in ROWS} - asked
    assert training[:50] != [row["question"] for row in ROWS[5:55]]


WRONG: dict[str, tuple[list[str], str]] = {
    "no question": ([], "must have at least one question"),
    "one question": ([json.dumps(ROWS[0])], "must have questions that are not held out"),
    "no JSON": (["{"], "line 1 is not a JSON object"),
    "no object": (["[1]", "[2]"], "row 1 must have a question and an answer"),
    "no object in the array": (["[1, 2]"], "row 1 must have a question and an answer"),
    "an empty array": (["[]"], "must have at least one question"),
    "other fields": (
        [json.dumps({"Question": "?", "solution": "1"})],
        "must have a question and an answer; its fields are: Question, solution",
    ),
    "a truth value": ([json.dumps({"question": "?", "answer": True})], "row 1 must have"),
    "no answer": ([json.dumps({"question": "?"})], "row 1 must have"),
    "no number": (
        [json.dumps(ROWS[0]), json.dumps({"question": "Who?", "answer": "Ann"})],
        "row 2: the answer 'Ann' does not end in a number",
    ),
}


@pytest.mark.parametrize("lines, says", WRONG.values(), ids=WRONG)
def test_a_wrong_file_is_named_in_one_line(tmp_path: Path, lines: list[str], says: str) -> None:
    path = tmp_path / "wrong.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError) as raised:
        Gsm8k(str(path))
    assert str(raised.value).startswith(f"env.data={path}: ") and says in str(raised.value)
    assert "\n" not in str(raised.value)


LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
SAME_FILES: dict[str, bytes] = {
    "byte-order mark": LINES.encode("utf-8-sig"),
    "UTF-16": LINES.encode("utf-16"),
    "UTF-16, other bytes first": b"\xfe\xff" + LINES.encode("utf-16-be"),
    "UTF-32": LINES.encode("utf-32"),
    "line ends of Windows": LINES.replace("\n", "\r\n").encode(),
    "empty lines": LINES.replace("\n", "\n\n \n").encode(),
    "array": json.dumps(ROWS).encode(),
    "array on many lines": json.dumps(ROWS, indent=1).encode("utf-8-sig"),
}


@pytest.mark.parametrize("content", SAME_FILES.values(), ids=SAME_FILES)
def test_a_file_is_taken_as_other_programs_write_it(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "q.jsonl").write_bytes(content)
    assert Gsm8k(str(tmp_path / "q.jsonl")).questions == Gsm8k(a_file(tmp_path, ROWS)).questions


def test_a_number_with_an_exponent_is_an_answer(tmp_path: Path) -> None:
    rows = [{"question": "How many?", "answer": 1e16}, {"question": "How much?", "answer": 2.5}]
    read = Gsm8k(a_file(tmp_path, rows)).questions
    answers = {item.answer for item in (*read.training, *read.evaluation)}
    assert answers == {"10000000000000000", "2.5"}


@pytest.mark.parametrize(
    "name", ["missing.json", "data/missing.json", "data/missing.csv", "missing.jsonl", "~/missing"]
)
def test_a_missing_file_is_called_missing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise AssertionError(f"{name} was asked for")

    monkeypatch.setattr("environments.gsm8k.data.import_module", fail)
    with pytest.raises(ValueError, match=rf"\Aenv\.data={name}: there is no such file.*\Z"):
        Gsm8k(name)


def test_a_file_below_the_home_folder_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = Path(a_file(tmp_path, ROWS))
    assert Gsm8k(f"~/{path.name}").questions == Gsm8k(str(path)).questions


def test_generated_questions_need_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ValueError, match=r"env.data=gsm_symbolic: .*pip install reasoning-gym"):
        Gsm8k("gsm_symbolic")
