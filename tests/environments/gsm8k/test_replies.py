"""The grader of GSM8K: numbers in every form, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from environments import End
from environments.gsm8k import Gsm8k
from environments.gsm8k.replies import grade
from tests.environments.limits import no_hang

# Forms of a number in a reply. Each means the same as the number alone.
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
HEADINGS = ["Step {}: part {}", "**{}. Add up**", "Step {}: 3 * 5 = 15 eggs", "Option {} or 2"]
HEADINGS += ["{}. Work it out", "**Step {}:** 16 - 3 = 13"]
ENDS = [
    r"\boxed{%}",
    "\\boxed{%}\n\n#### 3 key points",
    "\\boxed{%}\n#### Check 2: 4 + 5",
    "#### %",
]
ENDS += ["#### Final answer\n%", "#### **The answer is:**\n\n$%"]


@given(NUMBERS, st.sampled_from(HEADINGS), st.sampled_from(ENDS), st.integers(1, 9))
def test_headings_of_four_hashes_are_no_answers(n: int, heading: str, end: str, count: int) -> None:
    parts = [f"#### {heading.replace('{}', str(i))}\n3 * 6 = 5." for i in range(1, count + 1)]
    reply = "\n\n".join([*parts, end.replace("%", str(n))])
    assert grade(reply, str(n)), reply
    assert not grade(reply, str(n + 1)), reply


@pytest.mark.slow
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
    *(r"#### 20 or \boxed{18}", "#### Step 2: 9 + 9 = 18"),
    *("#### 20\n#### 18", "#### 18\n\\boxed{20}", "\\boxed{20}\n#### 18", "#### 20 or\n#### 18"),
    r"It could be \boxed{20}. It could be \boxed{18}.",
    *(f"#### {separator.join(NUMBERS_TO_18)}" for separator in (" ", ", ", ",", "\t", " and ")),
    "\n".join(f"#### {n}" for n in NUMBERS_TO_18),
    ", ".join(rf"\boxed{{{n}}}" for n in NUMBERS_TO_18),
    "\n".join(rf"Answer {n}: \boxed{{{n}}}" for n in NUMBERS_TO_18),
]


@pytest.mark.parametrize("reply", REFUSED, ids=lambda reply: reply[:30])
def test_anything_but_a_single_number_is_refused(reply: str) -> None:
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


@pytest.mark.slow
def test_any_reply_has_an_outcome(questions: str) -> None:
    rng, env = Random(0), Gsm8k(questions)
    ends = set()
    for index in range(20_000):
        reply = "".join(rng.choices(PIECES, k=rng.randrange(12)))
        env.reset(index)
        step = env.step(reply)
        assert 0 <= step.reward <= 1.1 and step.end is not None
        ends.add(step.end)
    assert ends == {End.WON, End.LOST, End.INVALID}
    with no_hang():
        for reply in BAITS:
            assert not grade(reply, "18")
