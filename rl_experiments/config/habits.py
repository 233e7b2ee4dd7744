"""What people type out of habit: what it means here, or the one line that says what to write."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from rl_experiments.config.overrides import override_texts
from rl_experiments.errors import UserError, did_you_mean

# Hydra's options whose value is the next word, which is not a verb: `--cfg job`.
OPTIONS_WITH_VALUE = (
    *("--cfg", "-c", "--package", "-p", "--info", "-i", "--shell-completion", "-sc"),
    *("--config-name", "-cn", "--config-path", "-cp", "--config-dir", "-cd"),
)
# Hydra's options that print something and start no run.
_QUESTIONS = (
    *("--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i"),
    *("--shell-completion", "-sc"),
)
_FLAGS = ("--help", "--hydra-help", "--resolve", "--multirun", "--version")
_LAUNCHER = "rl"  # the one choice of hydra/launcher, in conf/
_NAMES = re.compile(r"(\+{0,2}name=|~name$)")  # an override that names the run
# Other programs' names of verbs.
_FORMER_VERBS = {
    **dict.fromkeys(("list", "ls", "status", "ps"), "runs"),
    **dict.fromkeys(("attach", "logs", "cancel", "pull"), "runs"),
    **dict.fromkeys(("eval", "test", "benchmark"), "evaluate"),
    **dict.fromkeys(("run", "fit", "finetune"), "train"),
    **dict.fromkeys(("watch", "demo"), "play"),
    **dict.fromkeys(("continue", "restart"), "resume"),
    **dict.fromkeys(("upload",), "push"),
}


def refuse_ways_around_the_launcher(words: Sequence[str]) -> None:
    """Raise a `UserError` for what would run a job without its gpu, its plan and its budget."""
    reason = "would run the job here without the launcher, so without gpu, plan and budget"
    for word in words:
        if re.match(r"-r|--run\b|--experimental-rerun\b", word):
            raise UserError(f"{word}: {reason}; leave it out")
    texts = override_texts(words)
    mode = texts.get("hydra.mode", "MULTIRUN").strip("'\"")
    if mode.upper() != "MULTIRUN":
        raise UserError(f"hydra.mode={mode}: {reason}; leave it out")
    launcher = texts.get("hydra/launcher", _LAUNCHER).strip("'\"")
    if launcher != _LAUNCHER:
        raise UserError(
            f"hydra/launcher={launcher}: {reason}; leave it out (hydra.launcher.backend=debug runs "
            "the job in this process)"
        )
    for key in ("hydra.launcher", "hydra.launcher._target_", "hydra.sweeper._target_"):
        if key in texts:
            raise UserError(f"{key}={texts[key]}: {reason}; leave it out")


def refuse_stray_words(words: Sequence[str], verbs: Collection[str]) -> None:
    """Raise a `UserError` for the first word that is neither a verb, an option nor a setting."""
    for position, word in enumerate(words):
        previous = words[position - 1] if position else ""
        following = words[position + 1] if position + 1 < len(words) else ""
        if previous in OPTIONS_WITH_VALUE or word in verbs:
            continue
        if word.startswith("--"):
            _refuse_unknown_option(word, following)
        elif word in ("", ",") or (previous.endswith(",") and "=" in previous):
            raise UserError(f"{previous} {word}: write the values without spaces, or in quotes")
        elif word == "=" or previous == "=":
            setting = "".join(words[max(0, position - 1) : position + 2])
            raise UserError(f"{' '.join(words[max(0, position - 1) : position + 2])}: write "
                            f"{setting}, without spaces")  # fmt: skip
        elif following.startswith("=") and len(following) > 1:
            raise UserError(f"{word} {following}: write {word}{following}, without spaces")
        elif "=" in word and word.partition("=")[0] in set(verbs) - {"resume"}:
            raise UserError(f"{word}: {word.partition('=')[0]} is a verb; write it alone")
        elif "=" not in word and not word.startswith(("-", "~")) and following != "=":
            _refuse_word(word, previous, verbs)


def _refuse_unknown_option(word: str, following: str) -> None:
    option, _, value = word.partition("=")
    if option in (*_FLAGS, *OPTIONS_WITH_VALUE):
        return
    if not value and following and "=" not in following and not following.startswith("-"):
        value = following
    if value:
        key = option.lstrip("-").replace("-", "_")
        raise UserError(f"{option}: settings have no dashes; write {key}={value}")
    meant = next((name for name in (*_FLAGS, *OPTIONS_WITH_VALUE) if name.startswith(option)), "")
    hint = f"did you mean {meant}?" if meant else "settings are written without dashes: gpu=a10g"
    raise UserError(f"{option}: no such option; {hint}")


def _refuse_word(word: str, previous: str, verbs: Collection[str]) -> None:
    if previous.endswith("="):
        raise UserError(f"{previous} {word}: write {previous}{word}, without spaces")
    if "/" in word:
        raise UserError(f"{word}: neither a verb nor a setting; write checkpoint={word}")
    meant = _FORMER_VERBS.get(word.lower())
    if meant:
        raise UserError(f"{word}: no such verb; did you mean {meant}?")
    if re.fullmatch(r"[A-Za-z_]+", word):
        raise UserError(f"{word}: no such verb{did_you_mean(word, verbs)}")
    raise UserError(f"{word}: neither a verb ({', '.join(verbs)}) nor a setting such as seed=3")


def starts_a_run(words: Sequence[str]) -> bool:
    """Return whether no option makes Hydra print something and end.

    >>> starts_a_run(["seed=1", "--config-dir", "mine"]), starts_a_run(["--cfg", "job"])
    (True, False)
    """
    return not any(word.partition("=")[0] in _QUESTIONS for word in words)


def options_first(words: Sequence[str]) -> list[str]:
    """Return the words with options and their values before the overrides, as Hydra needs them.

    >>> options_first(["seed=1", "-cd", "mine", "name=a"])
    ['-cd', 'mine', 'seed=1', 'name=a']
    """
    options: list[str] = []
    overrides: list[str] = []
    for position, word in enumerate(words):
        is_value = position > 0 and words[position - 1] in OPTIONS_WITH_VALUE
        (options if is_value or word.startswith("-") else overrides).append(word)
    return [*options, *overrides]


def typed_name(overrides: Sequence[str]) -> str | None:
    """Return the name of the run as it was typed, None if it was not.

    Hydra would read some names as numbers: `1e-5` as 1e-05, `1_000` as 1000, `007` as 7.
    """
    texts = [word.partition("=")[2].strip() for word in overrides if _NAMES.match(word)]
    if not texts:
        return None
    text = texts[-1]
    is_quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1] if is_quoted else text


def without_name(overrides: Sequence[str]) -> list[str]:
    """Return the overrides without those that name the run."""
    return [word for word in overrides if not _NAMES.match(word)]
