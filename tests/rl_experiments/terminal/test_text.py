"""Names and texts of others are shown as they are, and cannot steer the terminal."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import hydra_modal_jobs
import pytest
from hydra_modal_jobs import tables as launcher_tables
from hydra_modal_jobs import text as launcher_text
from rich.console import Console
from rich.table import Table

import rl_experiments
from rl_experiments.terminal import tables, text
from rl_experiments.terminal.progress import Progress

STEERING = "\x1b]0;title\x07\x1b[2J\x1b[31mred\x1b[0m \x9b1m \r\x08 \u202e \ud83d"
HARMLESS = r"\x1b]0;title\x07\x1b[2Jred \x9b1m \r\x08 \u202e \ud83d"
MARKUP = "a[/b] [red]x [/] [link=http://x]"


def test_control_characters_are_shown_as_their_codes() -> None:
    assert text.printable(STEERING) == HARMLESS
    assert text.printable("one\r\ntwo\tthree\n") == "one\ntwo\tthree\n"
    assert text.printable("été 日本 👩‍🚀 ∀x") == "été 日本 👩‍🚀 ∀x"


def test_brackets_in_tables_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    table = tables.new_table(f"title {MARKUP}", f"policy {MARKUP}", "ends", text=["ends"])
    table.add_row(f"row {MARKUP}", f"{MARKUP} {STEERING}")
    _print(table)
    launched = launcher_tables.plain_table(f"title {MARKUP}")
    launched.add_column(f"policy {MARKUP}")
    launched.add_column("ends")
    launched.add_row(f"row {MARKUP}", f"{MARKUP} {STEERING}")
    _print(launched)
    output = capsys.readouterr().out
    for part in (f"title {MARKUP}", f"policy {MARKUP}", f"row {MARKUP}", f"{MARKUP} {HARMLESS}"):
        assert output.count(part) == 2


def test_messages_and_live_lines_are_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress()
    progress.print(f"{MARKUP} {STEERING}")
    with progress.status(STEERING), progress.phase(MARKUP, total=1) as advance:
        advance(1)
    assert capsys.readouterr().out.splitlines() == [
        f"{MARKUP} {HARMLESS}",
        HARMLESS,
        f"{MARKUP} 1/1  0 s left",
    ]


def test_in_a_terminal_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    progress = Progress()
    progress.console = Console(force_terminal=True, color_system=None, record=True)
    progress._is_piped = False
    with progress.status(f"{MARKUP} {STEERING}"):
        pass
    with progress.phase(f"{MARKUP} {STEERING}", total=1) as advance:
        advance(1, f"{MARKUP} {STEERING}")
    assert "\x1b]0" not in progress.console.export_text()


def test_the_launchers_copies_are_equal() -> None:
    for here, copy in (
        (text.printable, launcher_text.printable),
        (text.print_line, launcher_text.print_line),
        (tables.PlainTable, launcher_tables.PlainTable),
    ):
        assert inspect.getsource(here) == inspect.getsource(copy)
    assert text._UNSAFE == launcher_text._UNSAFE


def test_nothing_is_printed_past_the_function_that_makes_it_harmless() -> None:
    """What is printed bare holds no words of others: lines that are harmless already, and words."""
    allowed = {"print(separator.join(words))", "print(line)"}
    for package in (rl_experiments, hydra_modal_jobs):
        for file in Path(package.__file__ or "").parent.rglob("*.py"):
            if file.name == "text.py":
                continue
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "print":
                    node.keywords = []
                    assert ast.unparse(node) in allowed, f"{file}: {ast.unparse(node)}"


def _print(table: Table) -> None:
    Console(width=200).print(table, highlight=False)
