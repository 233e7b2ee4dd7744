"""Completion by the shell: of verbs and runs here, of settings by Hydra."""

from __future__ import annotations

import re
from collections.abc import Collection, MutableMapping
from pathlib import Path

from rl_experiments.paths import RUNS

_ACTIONS_OF_RUNS = ("attach", "logs", "cancel", "pull")


def complete_words(environment: MutableMapping[str, str], verbs: Collection[str]) -> list[str]:
    """Return the verbs, runs and checkpoints that the line to complete may go on with.

    The verbs are taken out of the line, which is then left to Hydra: it does not know them.
    """
    line = environment.get("COMP_LINE", "")
    if not line:
        return []
    point = environment.get("COMP_POINT", "")
    *before, word = _arguments(line[: int(point)] if point.isdigit() else line)
    verb = next((each for each in before if each in verbs), None)
    words = _candidates(verb, before, word, verbs)
    hidden = re.sub(rf"(?<=\s)({'|'.join(verbs)})(\s)", "", line)
    hidden = re.sub(r"^\S*python[\d.]*\s+-m\s+(?=\S+\s)", "", hidden)  # Hydra knows a program
    environment["COMP_LINE"], environment["COMP_POINT"] = hidden, str(len(hidden))
    return [each for each in words if each.startswith(word)]


def _arguments(line: str) -> list[str]:
    """Return the words after the program's name, the last one as far as it is typed."""
    words = line.split()
    if line[-1:].isspace() or not words:
        words.append("")
    program, *rest = words
    if re.match(r"python[\d.]*$", Path(program).name) and rest:
        rest = rest[2:] if rest[0] == "-m" else rest[1:]
    return rest or [""]


def _candidates(
    verb: str | None, before: list[str], word: str, verbs: Collection[str]
) -> list[str]:
    if verb == "runs":
        return list(_ACTIONS_OF_RUNS) if before[-1] == "runs" else _names_of_runs()
    if verb in ("resume", "push", "export"):
        return _names_of_runs() if before[-1] == verb else []
    if word.startswith("checkpoint="):
        return [f"checkpoint={path}" for path in _paths(word.partition("=")[2])]
    return list(verbs) if verb in (None, "plan") and "=" not in word else []


def _names_of_runs() -> list[str]:
    if not RUNS.is_dir():
        return []
    return sorted(path.name for path in RUNS.iterdir() if path.is_dir())


def _paths(beginning: str) -> list[str]:
    """Return the folders whose paths begin so; those of hidden files are left out."""
    folder, _, name = beginning.rpartition("/")
    parent = Path(folder or ("/" if beginning.startswith("/") else "."))
    if not parent.is_dir():
        return []
    names = sorted(path.name for path in parent.iterdir() if path.is_dir())
    prefix = beginning[: len(beginning) - len(name)]
    return [f"{prefix}{each}" for each in names if not each.startswith(".")]
