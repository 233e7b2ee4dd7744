"""The command line: a verb, then Hydra overrides; every mistake ends in one line."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from importlib.metadata import version
from itertools import pairwise
from typing import Any, NamedTuple, NoReturn

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra_modal_jobs import LaunchRefused, claim_run, undo_all
from omegaconf import OmegaConf

from rl_experiments.commands.job import user_message
from rl_experiments.completion import complete_words
from rl_experiments.config.credentials import refuse_credentials
from rl_experiments.config.habits import (
    OPTIONS_WITH_VALUE,
    options_first,
    refuse_stray_words,
    refuse_ways_around_the_launcher,
    starts_a_run,
    typed_name,
    without_name,
)
from rl_experiments.config.hydra_private import always_multirun, fast_help
from rl_experiments.config.overrides import expand_shorthand, override_groups, override_texts
from rl_experiments.config.registration import register, register_search_path
from rl_experiments.errors import UserError
from rl_experiments.paths import CONF_DIR, RUNS
from rl_experiments.terminal import interrupts
from rl_experiments.terminal.text import print_line

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
    usage: str = ""  # for its --help; that of the others is the help of the program


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
        usage=(
            "play [SETTING=VALUE ...]: play an environment, as in play env=wordle\n"
            "play policy=random or play checkpoint=runs/RUN/0: watch it play"
        ),
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
        usage=(
            "runs: what was launched from here, with its state\n"
            "runs attach RUN: watch its jobs to their end\n"
            "runs logs RUN [JOB]: what its jobs have printed\n"
            "runs cancel RUN [JOB ...]: end its jobs; what they have saved is kept\n"
            "runs pull RUN [JOB ...] [--checkpoints]: fetch the files of its jobs"
        ),
    ),
    "push": Verb(
        "push RUN: copy its local checkpoints to checkpoint.store=... where they are missing",
        "rl_experiments.commands.push:push",
        is_job=False,
        has_arguments=True,
        usage=("push RUN [checkpoint.store=...]: copy to its store what is missing there"),
    ),
    "export": Verb(
        "export CHECKPOINT --to FOLDER, s3://... or hub:OWNER/NAME: a model for transformers",
        "rl_experiments.commands.export:export",
        is_job=False,
        has_arguments=True,
        usage=(
            "export CHECKPOINT --to FOLDER, s3://... or hub:OWNER/NAME: a model for transformers\n"
            "CHECKPOINT: a run in runs/, a folder, or an address"
        ),
    ),
    "audit": Verb(
        "check whether an environment's reward, or with judge=... a judge, can be trusted",
        "rl_experiments.commands.audit:audit",
        is_job=False,
        usage=(
            "audit [SETTING=VALUE ...]: can the reward be trusted, as in audit env=wordle\n"
            "audit judge=...: can this judge be trusted"
        ),
    ),
    "resume": Verb(
        "resume RUN: go on with the jobs that did not finish, with their settings",
        "rl_experiments.commands.runs:resume",
        is_job=False,
        has_arguments=True,
        usage=(
            "resume RUN [SETTING=VALUE ...]: go on with the jobs that did not finish\n"
            "Only settings of where and how it runs may change: gpu, budget, hydra.launcher.*\n"
            "--trust: also a folder from another machine, whose code it then runs"
        ),
    ),
}
DEFAULT_VERB = "train"


def main() -> None:
    """Run the command line, for the console script and for `python -m rl_experiments`."""
    interrupts.watch()
    _print_completions()
    try:
        verb, overrides = _split_arguments(sys.argv[1:])
    except UserError as error:
        _exit_with(str(error))
    overrides = [expand_shorthand(override) for override in overrides]
    try:
        refuse_credentials({**override_texts(overrides), **override_groups(overrides)})
    except UserError as error:
        _exit_with(str(error))
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


def _print_completions() -> None:
    """Print the words that a shell asks for and that Hydra does not know; Hydra adds its own."""
    words = complete_words(os.environ, VERBS)
    if words:
        separator = "\n" if "query=fish" in sys.argv else " "
        print(separator.join(words), end=separator, flush=True)


def _split_arguments(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """Return the verb, which may stand anywhere, and the other words."""
    words = list(arguments)
    if words and words[0] == "help":
        words = ["--help", *words[1:]]
    if "--version" in words or words == ["version"]:
        print_line(f"rl-experiments {version('rl-experiments')} (Hydra {hydra.__version__})")
        sys.exit(0)
    given = [word for word in words if word in VERBS]
    if not {"--help", "-h"}.isdisjoint(words) and given and VERBS[given[0]].usage:
        print_line(VERBS[given[0]].usage)
        sys.exit(0)
    if words and words[0] in VERBS and VERBS[words[0]].has_arguments:
        return words[0], words[1:]
    if words and words[0] == "plan":
        _refuse_plan_of(words[1:2])
    refuse_ways_around_the_launcher(words)
    refuse_stray_words(words, VERBS)
    verbs: list[str] = []
    rest: list[str] = []
    for previous, word in pairwise(["", *words]):
        is_verb = word in VERBS and previous not in OPTIONS_WITH_VALUE
        (verbs if is_verb else rest).append(word)
    if "plan" in verbs:
        verbs = [verb for verb in verbs if verb != "plan"]
        rest.append("hydra.launcher.plan_only=true")
        _refuse_plan_of(verbs)
    if len(set(verbs)) > 1:
        raise UserError(f"{' and '.join(verbs)}: give one verb")
    return verbs[0] if verbs else DEFAULT_VERB, rest


def _refuse_plan_of(words: Sequence[str]) -> None:
    """Raise a `UserError` if the first word is a verb that runs no job."""
    if words and words[0] in VERBS and not VERBS[words[0]].is_job:
        raise UserError(f"plan {words[0]}: plan shows what train or evaluate would run")


def _run_jobs(verb: str, overrides: list[str]) -> None:
    """Let Hydra compose the jobs and its launcher run them."""
    if verb == "evaluate":
        from rl_experiments.evaluation.played_environment import played_environment

        overrides = [*overrides, *played_environment(overrides)]
    if starts_a_run(overrides):  # which needs a name
        overrides = [*without_name(overrides), _name_override(verb, overrides)]
    sys.argv = [sys.argv[0], *options_first(overrides)]
    hydra_main = hydra.main(version_base=None, config_path=str(CONF_DIR), config_name="config")
    if {"--help", "-h"}.isdisjoint(overrides):
        with always_multirun():
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


def _name_override(verb: str, overrides: Sequence[str]) -> str:
    """Return the override that names the run, as it was typed, and claim a new run's folder.

    By default a new run is named after its experiment or environment, with the time. With
    `resume=true` it is the newest run of that kind. Exits with a message for a name that is taken
    or cannot be used.
    """
    texts = override_texts(overrides)
    resume = texts.get("resume", "").lower() in ("true", "yes", "on", "y", "1")
    has_own_folder = "hydra.sweep.dir" in texts
    name = typed_name(overrides)
    if name is not None:
        if name == "null":
            _exit_with("name=null: leave it out for a name with the date")
        if not re.fullmatch(r"[^\W_][\w.+-]{0,63}", name):
            _exit_with(f"name={name}: use up to 64 letters, digits and . _ + -")
        if not resume and not has_own_folder and claim_run(RUNS / name).was_used:
            _exit_with(
                f"name={name}: {RUNS / name} exists; add resume=true to go on, or take another name"
            )
        return _quoted(name)
    chosen = (texts.get(group, "null") for group in ("experiment", "env"))
    kind = next((choice for choice in chosen if choice not in ("null", "")), "game2048")
    kind = re.sub(r"[^\w.+-]", "+", kind) + ("-evaluate" if verb == "evaluate" else "")
    if resume:
        dated = re.compile(re.escape(kind) + r"-\d{4}-\d{6}(-\d+)?")
        folders = [f for f in RUNS.glob("*") if dated.fullmatch(f.name)] if RUNS.is_dir() else []
        if not folders:
            _exit_with(f"resume=true: no run {RUNS / kind}-* to go on with; give its name=...")
        return _quoted(max(folders, key=lambda folder: folder.stat().st_mtime).name)
    name = f"{kind}-{time.strftime('%m%d-%H%M%S')}"
    names = (name, *(f"{name}-{number}" for number in range(2, 100)))
    return _quoted(name if has_own_folder else next(filter(_is_free, names)))


def _quoted(name: str) -> str:
    """Return the override in quotes where Hydra would read the name as a number or the like."""
    with suppress(HydraException):
        if OverridesParser.create().parse_override(f"name={name}").value() == name:
            return f"name={name}"
    return f"name='{name}'"


def _is_free(name: str) -> bool:
    """Return whether the folder of a run of this name is now this command's, and nobody else's."""
    try:
        return not (RUNS / name).exists() and not claim_run(RUNS / name).was_used
    except LaunchRefused:  # another command has just taken it
        return False


def _help_of_verbs() -> str:
    return "\n".join(f"  {name:<9} {verb.help}" for name, verb in VERBS.items())


def _exit_with(message: str, code: int = 1) -> NoReturn:
    print_line(message, is_error=True)
    sys.exit(code)
