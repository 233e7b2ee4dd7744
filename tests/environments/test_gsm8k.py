"""GSM8K: the grader against made-up replies, the split of the questions, sources, rewards."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import fields
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from threading import Thread
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from environments import End, evaluation_seed, training_seed
from environments.gsm8k import Gsm8k
from environments.gsm8k.replies import grade
from tests.support.paths import CHECKOUT

ROWS: list[dict[str, Any]] = [
    {
        "question": f"Ann has {n} apples and buys {n % 7} more. How many has she?",
        "answer": f"She has {n}+{n % 7}=<<{n}+{n % 7}={n + n % 7}>>{n + n % 7}.\n#### {n + n % 7}",
    }
    for n in range(200)
]


def a_file(folder: Path, rows: list[Any], name: str = "questions.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="session")
def questions(tmp_path_factory: pytest.TempPathFactory) -> str:
    return a_file(tmp_path_factory.mktemp("gsm8k"), ROWS)


# What a reply may make of a number. Each says the same as the number alone.
FORMS: dict[str, Callable[[int], str]] = {
    "hashes": lambda n: f"#### {n}",
    "no space": lambda n: f"####{n}",
    "boxed": lambda n: rf"So it is $\boxed{{{n}}}$.",
    "display": lambda n: rf"\[ \boxed{{{n}}} \]",
    "next line": lambda n: f"####\n{n}\n\nI hope this helps with question 7.",
    "period": lambda n: f"#### {n}.",
    "zeros": lambda n: f"#### {n}.00",
    "unit": lambda n: f"#### {n} dollars",
    "hyphened unit": lambda n: f"#### {n}-inch",
    "rate": lambda n: f"#### {n}/hour",
    "square": lambda n: rf"\boxed{{{n}\text{{ ft}}^2}}",
    "superscript": lambda n: f"#### {n} m²",
    "bold": lambda n: f"#### **{n}**",
    "all bold": lambda n: f"**#### {n}**",
    "bold sentence": lambda n: f"So **#### ${n}**.",
    "bold LaTeX": lambda n: rf"\boxed{{\textbf{{{n}}}}}",
    "money": lambda n: f"#### {'-' * (n < 0)}${abs(n)}",
    "money first": lambda n: f"#### ${n}",
    "LaTeX money": lambda n: rf"\boxed{{\${n}}}",
    "LaTeX unit": lambda n: rf"\boxed{{{n} \text{{ apples}}}}",
    "LaTeX space": lambda n: rf"\boxed{{{n}\,\mathrm{{km}}}}",
    "percent": lambda n: rf"\boxed{{{n}\%}}",
    "commas": lambda n: f"#### {n:,}",
    "LaTeX commas": lambda n: rf"\boxed{{{n:,}}}".replace(",", "{,}"),
    "other LaTeX commas": lambda n: rf"\boxed{{{n:,}}}".replace(",", r",\!"),
    "thin spaces": lambda n: rf"\boxed{{{n:,}}}".replace(",", r"\,"),
    "minus sign": lambda n: f"#### {n}".replace("-", "\N{MINUS SIGN}"),
    "equation": lambda n: f"#### x = {n}",
    "sentence": lambda n: f"#### The answer is {n}",
    "again": lambda n: f"#### {n} (that is {n}.0)",
    "both": lambda n: f"\\boxed{{{n}}}\n#### {n}",
    "one in the other": lambda n: rf"#### $\boxed{{{n}}}$",
    "element": lambda n: f"<answer>\n#### {n}</answer>",
    "thought": lambda n: rf"<think>\boxed{{1234}}\n#### 4321</think>\n#### {n}",
    "opened thought": lambda n: f"#### 4321</think>#### {n}",
    "thought after": lambda n: f"#### {n}\n<think>#### 4321",
    "box in a box": lambda n: rf"\boxed{{\boxed{{{n}}}}}",
    "hashes in a box": lambda n: rf"\boxed{{#### {n}}}",
    "heading after": lambda n: f"\\boxed{{{n}}}\n\n#### Checked",
    "heading": lambda n: f"#### The sum\n\\boxed{{{n}}}",
    "steps": lambda n: rf"First \boxed{{4321}}. Then less of them: \boxed{{{n}}}.",
    "correction": lambda n: f"#### 4321\nWait, that is wrong.\n#### {n}",
}
NUMBERS = st.one_of(st.integers(-30, 30), st.integers(-(10**7), 10**7))


@settings(max_examples=150, deadline=None)
@given(NUMBERS, NUMBERS)
def test_a_number_is_read_in_every_form(n: int, other: int) -> None:
    for name, form in FORMS.items():
        reply = f"9 + 9 = 18, so we go on.\n{form(n)}"
        for gold in (str(n), f"{n:,}", f"{n}.0", f"We get <<1+1=2>>2.\n#### {n:,}"):
            assert grade(reply, gold), name
        assert grade(reply, str(other)) == (n == other), name


NUMBERS_TO_18 = [str(n) for n in range(1, 19)]
REFUSED = [
    *("", "18", "The answer is 18.", "####", r"\boxed{}", "#### eighteen", "<answer>18</answer>"),
    *("<think>#### 18</think>", "<think>#### 18", r"\boxed{18}</think>", r"\boxed{18"),
    # calculations
    *("#### 9*2", "#### 9 x 2", "#### 36/2", "#### 18*1", "#### 18 * 18", "#### 18+0", "#### 20-2"),
    *(
        r"\boxed{\frac{36}{2}}",
        r"\boxed{\sqrt{18}}",
        "#### f(18)",
        "#### 9*2 = 18",
        r"#### 18\times1",
    ),
    # other numbers
    *("#### 18.5", "#### -18", "#### - 18", "#### 1.8", "#### 180", "#### 18k", "#### 18 thousand"),
    *("#### 1,8", "#### 18^2", "#### 18²", "#### 18½", "#### 18e0", "#### 0x18", "#### minus 18"),
    *(
        "#### 18 and a half",
        "#### not 18",
        "#### ~18",
        "#### >18",
        "#### 18万",
        f"#### 18{'0' * 99}",
    ),
    # choices and lists
    *("Either 18 or 20", "#### Either 18 or 20", "#### 18 or 20", "#### 18, 20", "#### 18-20"),
    *("#### 18 18", "#### 18 x 18"),
    *("#### 18 18", "#### 18 x 18"),
    *(r"\boxed{18} or \boxed{20}", r"\boxed{20} or \boxed{18}", r"\boxed{18, 20}", "#### 18 20"),
    *("#### 20\n#### 18", "#### 18\n\\boxed{20}", "\\boxed{20}\n#### 18", "#### 20 or\n#### 18"),
    r"It could be \boxed{20}. It could be \boxed{18}.",
    *(f"#### {separator.join(NUMBERS_TO_18)}" for separator in (" ", ", ", ",", "\t", " and ")),
    "\n".join(f"#### {n}" for n in NUMBERS_TO_18),
    ", ".join(rf"\boxed{{{n}}}" for n in NUMBERS_TO_18),
    "\n".join(rf"Answer {n}: \boxed{{{n}}}" for n in NUMBERS_TO_18),
]


@pytest.mark.parametrize("reply", REFUSED, ids=lambda reply: reply[:30])
def test_what_is_no_single_number_is_refused(reply: str) -> None:
    assert not grade(reply, "18")


def test_grading_works_in_any_thread() -> None:
    with ThreadPoolExecutor(8) as pool:
        graded = list(pool.map(lambda n: grade(rf"\boxed{{{n}}}", "7"), range(200)))
    assert graded == [n == 7 for n in range(200)]
    with pytest.raises(ValueError, match="does not end in a number"):
        grade("#### 1", "one")


MANY = 1 << 15
BAITS = ["{" * MANY, r"\boxed{" * MANY, "####" * MANY, "#### 1\n" * MANY, "\\" * MANY, "1," * MANY]
BAITS += [r"\boxed{1}" * 4000, f"#### {'1' * MANY}", f"#### {'1 ' * 99}", "<think>" * MANY]
BAITS += [rf"\boxed{{{'{' * MANY}{'}' * MANY}}}", rf"\boxed{' ' * MANY}{{1}}", "#### " + "*" * MANY]
PIECES = [r"\boxed{", "}", "{", "#### ", "18", "20", "-", ".", ",", "$", "\\", " ", "\n", " or "]
PIECES += ["<think>", "</think>", "\\text{", "\\!", "**", "½", "🙂", "\ud800", "\x00", "=", "eggs"]


def test_any_reply_has_an_outcome_at_once(questions: str) -> None:
    rng, env = Random(0), Gsm8k(questions)
    ends = set()
    for index in range(20_000):
        reply = "".join(rng.choices(PIECES, k=rng.randrange(12)))
        env.reset(index)
        step = env.step(reply)
        assert 0 <= step.reward <= 1.1 and step.end is not None
        ends.add(step.end)
    assert ends == {End.WON, End.LOST, End.INVALID}
    for reply in BAITS:
        assert best_time(lambda reply=reply: grade(reply, "18")) < 0.05, reply[:20]  # type: ignore[misc]


def best_time(call: Callable[[], object]) -> float:
    times = []
    for _ in range(5):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)


def test_rewards_and_ends(questions: str) -> None:
    env = Gsm8k(questions, correct_weight=2, format_weight=0.5)
    shown = env.reset(evaluation_seed(3))
    row = next(row for row in ROWS if row["question"] == shown)
    gold = row["answer"].rpartition(" ")[2]
    assert env.category == "1 step"
    right = env.step(rf"We add. \boxed{{{gold}}}")
    assert (right.end, right.reward, right.metrics) == (End.WON, 2.5, {"win": 1.0, "format": 1.0})
    with pytest.raises(RuntimeError, match="call reset"):
        env.step("")
    for reply, end, reward in (
        (rf"\boxed{{{gold}1}}", End.LOST, 0.5),
        (f"The answer is {gold}.", End.INVALID, 0.0),
        (env.system_prompt, End.INVALID, 0.0),
        (shown, End.INVALID, 0.0),
    ):
        assert env.reset(evaluation_seed(3), member=1) == shown
        step = env.step(reply)
        assert (step.end, step.reward) == (end, reward)
    env.reset(0)
    assert env.truncate().end is End.TRUNCATED
    assert env.reply_from_input(" 18 ") == r"\boxed{18}"
    assert env.reply_from_input("#### 18") == "#### 18"


def test_baselines_show_what_skill_is_worth(questions: str) -> None:
    env, rng = Gsm8k(questions), Random(0)
    wins = {}
    for name, policy in env.baselines.items():
        ends = []
        for index in range(500):
            env.reset(training_seed(0, index))
            ends.append(env.step(policy(env, rng)))
        assert all(step.metrics["format"] for step in ends)
        wins[name] = sum(step.end is End.WON for step in ends) / len(ends)
    assert wins.pop("oracle") == 1
    assert max(wins.values()) < 0.2


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


def test_two_files(tmp_path: Path) -> None:
    held_out = [*ROWS[:5], {"question": "1 + 1?", "answer": 2, "source": "mine"}]
    env = Gsm8k(a_file(tmp_path, ROWS), a_file(tmp_path, held_out, "held_out.jsonl"))
    asked = {row["question"] for row in held_out}
    assert {*shown_in(env, evaluation_seed, 6)} == asked
    training = shown_in(env, lambda index: training_seed(0, index), 400)
    assert {*training} == {row["question"] for row in ROWS} - asked
    assert training[:50] != [row["question"] for row in ROWS[5:55]]


WRONG: dict[str, tuple[list[str], str]] = {
    "no question": ([], "must have a question at least"),
    "one question": ([json.dumps(ROWS[0])], "must have questions that are not held out"),
    "no JSON": (["{"], "line 1 is no JSON object"),
    "no object": (["[]"], "row 1 must have a question and an answer"),
    "no answer": ([json.dumps({"question": "?"})], "row 1 must have"),
    "no number": (
        [json.dumps(ROWS[0]), json.dumps({"question": "Who?", "answer": "Ann"})],
        "row 2: the answer 'Ann' does not end in a number",
    ),
}


@pytest.mark.parametrize("lines, says", WRONG.values(), ids=WRONG)
def test_a_wrong_file_is_told_in_one_line(tmp_path: Path, lines: list[str], says: str) -> None:
    path = tmp_path / "wrong.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError) as raised:
        Gsm8k(str(path))
    assert str(raised.value).startswith(f"env.data={path}: ") and says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_wrong_settings_are_named(questions: str, tmp_path: Path) -> None:
    wrong: dict[str, list[Any]] = {"correct_weight": [-1, "1", 101], "format_weight": [NAN, True]}
    wrong |= {"data": ["", None, 3], "evaluation_data": [""]}
    for name, values in wrong.items():
        for value in values:
            with pytest.raises(ValueError, match=rf"\Aenv\.{name}={value}: must be \w+"):
                Gsm8k(**{"data": questions, name: value})
    missing: Any = str(tmp_path / "missing.jsonl")
    for name in ("data", "evaluation_data"):
        with pytest.raises(ValueError, match=rf"\Aenv\.{name}=\S+ must be .*No such file"):
            Gsm8k(**{"data": questions, name: missing})
    (tmp_path / "image.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="it is no text"):
        Gsm8k(str(tmp_path / "image.jsonl"))


def test_made_up_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ValueError, match=r"env.data=gsm_symbolic: .*pip install reasoning-gym"):
        Gsm8k("gsm_symbolic")


NAN = float("nan")

README = """---
configs:
- config_name: main
  data_files:
  - {split: train, path: main/train.jsonl}
  - {split: test, path: main/test.jsonl}
- config_name: socratic
  data_files:
  - {split: train, path: socratic/train.jsonl}
---
"""
COMMIT = "a" * 40
ON_HUB = {
    "README.md": README,
    "main/train.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS[:20]),
    "main/test.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS[20:25]),
    "socratic/train.jsonl": json.dumps({"question": "?", "answer": "#### 0"}),
}


class Hub(BaseHTTPRequestHandler):
    """As much of the Hugging Face hub as one data set needs."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path, _, tail = self.path.partition("?")[0].partition("/openai/gsm8k")
        kind, _, name = tail.strip("/").partition("/")
        name = name.partition("/")[2]  # after the revision
        if path == "/":
            self.reply("")
        elif kind == "resolve" and name in ON_HUB:
            self.reply(ON_HUB[name])
        elif path == "/api/datasets" and kind == "revision":
            self.reply(json.dumps({"id": "openai/gsm8k", "sha": COMMIT, "siblings": []}))
        elif path == "/api/datasets" and kind == "tree":
            found = [file for file in ON_HUB if file.startswith(name)]
            sizes = {file: len(ON_HUB[file]) for file in found}
            entries = [
                {"type": "file", "path": f, "size": size, "oid": COMMIT}
                for f, size in sizes.items()
            ]
            self.reply(json.dumps(entries))
        else:
            self.reply("", status=404)

    do_HEAD = do_GET

    def reply(self, text: str, *, status: int = 200) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hash(text)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if status == 404:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


SHOW = """
import sys
from environments.gsm8k import Gsm8k
from environments.gsm8k.data import questions
for _ in sys.stdin:
    questions.cache_clear()
    try:
        found = Gsm8k().questions
        said = f"{len(found.training)} {len(found.evaluation)} {found.evaluation[0].question}"
    except ValueError as error:
        said = str(error)
    print(said, flush=True)
"""


def test_questions_come_from_the_hub_and_later_without_it(tmp_path: Path) -> None:
    """By the `datasets` library itself, in a process of its own."""
    ours = {k: v for k, v in os.environ.items() if not re.search("proxy|OFFLINE", k, re.IGNORECASE)}
    with hub() as endpoint:
        child = subprocess.Popen(
            [sys.executable, "-c", SHOW],
            env={**ours, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert child.stdin and child.stdout

        def shown() -> str:
            print("again", file=child.stdin, flush=True)
            assert child.stdout
            return child.stdout.readline()

        first = shown()
    assert first.startswith("20 5 Ann has 2")
    assert shown() == first
    shutil.rmtree(tmp_path / "home")
    refused = shown()
    assert refused.startswith("env.data=openai/gsm8k: the Hugging Face hub cannot be reached")
    assert "set env.data to a .jsonl file" in refused
    rest, _ = child.communicate()
    assert (rest, child.returncode) == ("", 0)


def test_settings_file(questions: str) -> None:
    names = [field.name for field in fields(Gsm8k)]
    stored = OmegaConf.load(CHECKOUT / "conf/env/gsm8k.yaml")
    assert isinstance(stored, DictConfig) and {*stored} == {"name", "_target_", *names}
    assert stored.data == "openai/gsm8k"
    chosen = OmegaConf.merge(OmegaConf.masked_copy(stored, names), {"data": questions})
    env = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Gsm8k), chosen))
    assert env == Gsm8k(questions) and isinstance(env, Gsm8k)
    assert env.fresh().questions is env.questions  # read once
