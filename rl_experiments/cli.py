"""The command line: a verb, then Hydra overrides; every mistake ends in one line."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import pairwise
from typing import Any, NamedTuple, NoReturn

import hydra
from hydra_modal_jobs import LaunchRefused, claim_run, undo_all
from omegaconf import OmegaConf

from rl_experiments.commands.job import user_message
from rl_experiments.config.hydra_private import fast_help
from rl_experiments.config.overrides import expand_shorthand, override_texts
from rl_experiments.config.registration import register, register_search_path
from rl_experiments.paths import CONF_DIR, RUNS
from rl_experiments.terminal import interrupts
from rl_experiments.terminal.text import printable

_EXIT_CODE_OF_CTRL_C = 130  # 128 + SIGINT, as shells have it


class Verb(NamedTuple):
    """A verb of the command line.

    `target` names a function as `module:function`. That of a job is a Hydra task, which the
    launcher runs in a run folder; any other is called with the words after the verb.
    """

    help: str
    target: str
    is_job: bool = True
    has_arguments: bool = False  # the words after it are names and options, not just overrides


VERBS = {
    "train": Verb(
        "train a policy; the default when no verb is given",
        "rl_experiments.commands.train:train",
    ),
    "evaluate": Verb(
        "play unseen seeds with a model=, a checkpoint= or a scripted policy=",
        "rl_experiments.commands.evaluate:evaluate",
    ),
    "play": Verb(
        "play in the terminal, or watch a checkpoint= or a policy= play",
        "rl_experiments.commands.play:play",
        is_job=False,
    ),
    "plan": Verb(
        "show what train (or plan evaluate) would run, where and at what cost; start nothing",
        "rl_experiments.commands.train:train",
    ),
    "runs": Verb(
        "list what was launched; runs attach|logs|cancel|pull RUN",
        "rl_experiments.commands.runs:runs",
        is_job=False,
        has_arguments=True,
    ),
    "push": Verb(
        "push RUN: copy its local checkpoints to checkpoint.store=... where they are missing",
        "rl_experiments.commands.push:push",
        is_job=False,
        has_arguments=True,
    ),
    "export": Verb(
        "export CHECKPOINT --to FOLDER, s3://... or hub:OWNER/NAME: a model for transformers",
        "rl_experiments.commands.export:export",
        is_job=False,
        has_arguments=True,
    ),
    "audit": Verb(
        "check whether an environment's reward, or with judge=... a judge, can be trusted",
        "rl_experiments.commands.audit:audit",
        is_job=False,
    ),
    "resume": Verb(
        "resume RUN: go on with the jobs that did not finish, with their settings",
        "rl_experiments.commands.runs:resume",
        is_job=False,
        has_arguments=True,
    ),
}
DEFAULT_VERB = "train"

# Hydra's options whose value is the next word, which is not a verb: `--cfg job`.
_HYDRA_OPTIONS_WITH_VALUE = (
    *("--cfg", "-c", "--package", "-p", "--info", "-i", "--shell-completion", "-sc"),
    *("--config-name", "-cn", "--config-path", "-cp", "--config-dir", "-cd"),
)


def main() -> None:
    """Run the command line, for the console script and for `python -m rl_experiments`."""
    interrupts.watch()
    _hide_verbs_from_completion()
    verb, overrides = _split_arguments(sys.argv[1:])
    overrides = [expand_shorthand(override) for override in overrides]
    register()
    register_search_path(overrides)
    OmegaConf.register_new_resolver("verbs", _help_of_verbs, replace=True)
    # Threads that spin while they wait slow training down a lot where other programs run as well.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    show_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    # Hydra prints and exits by itself otherwise; so the errors arrive below.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        if VERBS[verb].is_job:
            _run_jobs(verb, overrides)
        else:
            _function_of(verb)(overrides)
    except KeyboardInterrupt as interrupt:
        _exit_with(str(interrupt) or "Stopped.", code=_EXIT_CODE_OF_CTRL_C)
    except Exception as error:
        if interrupts.caused(error):
            _exit_with("Stopped.", code=_EXIT_CODE_OF_CTRL_C)
        message = user_message(error)
        if message is None or show_traceback:
            raise
        _exit_with(message)
    finally:
        undo_all()


def _hide_verbs_from_completion() -> None:
    """Take the verbs out of the line that Hydra is asked to complete; it does not know them."""
    if "COMP_LINE" in os.environ:
        verbs = rf"(?<=\s)({'|'.join(VERBS)})\s"
        os.environ["COMP_LINE"] = re.sub(verbs, "", os.environ["COMP_LINE"])


def _split_arguments(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """Return the verb, which may stand anywhere, and the other words."""
    if arguments and arguments[0] in VERBS and VERBS[arguments[0]].has_arguments:
        return arguments[0], list(arguments[1:])
    verbs: list[str] = []
    rest: list[str] = []
    for previous, word in pairwise(["", *arguments]):
        is_bare = re.fullmatch(r"[A-Za-z_]+", word) and previous not in _HYDRA_OPTIONS_WITH_VALUE
        (verbs if is_bare else rest).append(word)
    for word in verbs:
        if word not in VERBS:
            _exit_with(f"{word}: no such verb (choose from: {', '.join(VERBS)})")
    if "plan" in verbs:
        verbs.remove("plan")
        rest.append("hydra.launcher.plan_only=true")
    if len(verbs) > 1:
        _exit_with(f"{' and '.join(verbs)}: give one verb")
    return verbs[0] if verbs else DEFAULT_VERB, rest


def _run_jobs(verb: str, overrides: list[str]) -> None:
    """Let Hydra compose the jobs and its launcher run them."""
    # Options such as --help, --cfg and --shell-completion start no run, which would need a name.
    if not any(word.startswith("-") and word not in ("-m", "--multirun") for word in overrides):
        overrides = [*overrides, *_name_override(verb, overrides)]
    sys.argv = [sys.argv[0], *overrides]
    hydra_main = hydra.main(version_base=None, config_path=str(CONF_DIR), config_name="config")
    if {"--help", "-h"}.isdisjoint(overrides):
        hydra_main(_function_of(verb))()
    else:
        with fast_help():
            hydra_main(_no_task)()


def _no_task(cfg: Any) -> None:
    """Stand for the task where Hydra only prints its help, so that no verb is imported."""


def _function_of(verb: str) -> Callable[..., Any]:
    module, _, name = VERBS[verb].target.partition(":")
    function: Callable[..., Any] = getattr(import_module(module), name)
    return function


def _name_override(verb: str, overrides: Sequence[str]) -> list[str]:
    """Return the override that names the run, or none if the overrides name it already.

    A new run is named after its experiment or environment, with the time. With `resume=true` it is
    the newest run of that kind. Exits with a message for a name that is taken or cannot be used.
    """
    texts = override_texts(overrides)
    resume = texts.get("resume", "").lower() == "true"
    if "name" in texts:
        name = texts["name"]
        if not re.fullmatch(r"[A-Za-z0-9][\w.+-]{0,63}", name):
            _exit_with(f"name={name}: use up to 64 letters, digits and . _ + -")
        if not resume and "hydra.sweep.dir" not in texts and claim_run(RUNS / name).was_used:
            _exit_with(
                f"name={name}: {RUNS / name} exists; add resume=true to go on, or take another name"
            )
        return []
    kind = texts.get("experiment") or texts.get("env") or "game2048"
    kind = re.sub(r"[^\w.+-]", "+", kind) + ("-evaluate" if verb == "evaluate" else "")
    if resume:
        dated = re.compile(re.escape(kind) + r"-\d{4}-\d{6}(-\d+)?")
        folders = [f for f in RUNS.glob("*") if dated.fullmatch(f.name)] if RUNS.is_dir() else []
        if not folders:
            _exit_with(f"resume=true: no run {RUNS / kind}-* to go on with; give its name=...")
        return [f"name={max(folders, key=lambda folder: folder.stat().st_mtime).name}"]
    name = f"{kind}-{time.strftime('%m%d-%H%M%S')}"
    names = (name, *(f"{name}-{number}" for number in range(2, 100)))
    if "hydra.sweep.dir" in texts:
        return [f"name={name}"]
    return [f"name={next(filter(_is_free, names))}"]


def _is_free(name: str) -> bool:
    """Return whether the folder of a run of this name is now this command's, and nobody else's."""
    try:
        return not (RUNS / name).exists() and not claim_run(RUNS / name).was_used
    except LaunchRefused:  # another command has just taken it
        return False


def _help_of_verbs() -> str:
    return "\n".join(f"  {name:<9} {verb.help}" for name, verb in VERBS.items())


def _exit_with(message: str, code: int = 1) -> NoReturn:
    print(printable(message), file=sys.stderr)
    sys.exit(code)
