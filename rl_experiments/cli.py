"""The command line: a verb, then Hydra overrides; every mistake ends in one line."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import OmegaConf

from rl_experiments.config.schema import CheckpointConfig, register, search_outside
from rl_experiments.errors import UserError, what_to_tell
from rl_experiments.paths import CONF_DIR, CONFIG_FILE, RUNS
from rl_experiments.terminal import interrupts


class Verb(NamedTuple):
    """What a verb does: `module:function` of a Hydra task, or of a function of the words."""

    help: str
    target: str
    is_job: bool = True  # composed by Hydra, run by its launcher, with a run folder


VERBS = {
    "train": Verb("train a policy; what no verb means", "rl_experiments.commands.train:train"),
    "evaluate": Verb(
        "play the evaluation seeds: a checkpoint=, a model=, or a scripted policy=",
        "rl_experiments.commands.evaluate:evaluate",
    ),
    "play": Verb(
        "play in the terminal, or watch a checkpoint= or policy= play",
        "rl_experiments.commands.play:play",
        is_job=False,
    ),
    "plan": Verb(
        "what train (or plan evaluate) would run, where, at what cost; runs nothing",
        "rl_experiments.commands.train:train",
    ),
    "runs": Verb(
        "what was launched; runs attach|logs|cancel|pull RUN",
        "rl_experiments.cli:runs",
        is_job=False,
    ),
    "push": Verb(
        "push RUN: copy the checkpoints here that its checkpoint.store=... lacks",
        "rl_experiments.cli:push",
        is_job=False,
    ),
    "export": Verb(
        "export CHECKPOINT --to FOLDER, s3://... or hub:OWNER/NAME: a model for transformers",
        "rl_experiments.commands.export:export",
        is_job=False,
    ),
    "audit": Verb(
        "whether an environment's reward can be trusted with training, or with judge=... a judge's",
        "rl_experiments.commands.audit:audit",
        is_job=False,
    ),
    "resume": Verb(
        "resume RUN: run again what did not finish, with the settings of then",
        "rl_experiments.cli:resume",
        is_job=False,
    ),
}

# Hydra's flags whose next word is theirs: `--cfg job`.
_FLAGS_WITH_VALUE = (
    *("--cfg", "-c", "--package", "-p", "--info", "-i", "--shell-completion", "-sc"),
    *("--config-name", "-cn", "--config-path", "-cp", "--config-dir", "-cd"),
)


def main() -> None:
    """The console script and `python -m rl_experiments`."""
    interrupts.watch()
    _hide_verbs_from_completion()
    verb, overrides = _split(sys.argv[1:])
    # A folder, or what is in it: the shorter word is the one that people type.
    overrides = [re.sub(r"^checkpoint=", "checkpoint.path=", word) for word in overrides]
    overrides = [_with_known_environments(word) for word in overrides]
    register()
    search_outside(overrides)
    OmegaConf.register_new_resolver("verbs", _verb_help, replace=True)
    # Threads that spin while they wait bring training to a stand on a machine with other work.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    full = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here, where they become one line
    try:
        if VERBS[verb].is_job:
            _run_jobs(verb, overrides)
        else:
            _function(verb)(overrides)
    except KeyboardInterrupt as stop:
        _exit(str(stop) or "Stopped.", code=130)
    except Exception as error:
        if interrupts.caused(error):
            _exit("Stopped.", code=130)
        line = what_to_tell(error)
        if line is None or full:
            raise
        _exit(line)


def runs(words: Sequence[str]) -> None:
    """The `runs` verb."""
    from hydra_modal_jobs import run_commands as _runs

    _runs.runs(words, root=RUNS)


def resume(words: Sequence[str]) -> None:
    """The `resume` verb."""
    from hydra_modal_jobs import run_commands as _runs

    _runs.resume(words, root=RUNS)


def push(words: Sequence[str]) -> None:
    """The `push` verb: `RUN [checkpoint.store=...]`."""
    from rl_experiments.checkpoints.checkpointer import push as push_job

    names = [word for word in words if "=" not in word]
    changes = OmegaConf.from_dotlist([word for word in words if "=" in word])
    if len(names) != 1:
        raise UserError("push takes one run: push RUN [checkpoint.store=...]")
    run = next((p for p in (RUNS / names[0], Path(names[0])) if p.is_dir()), None)
    jobs = sorted(path.parent for path in run.glob(f"*/{CONFIG_FILE}")) if run else []
    if not jobs:
        raise UserError(f"{names[0]}: no such run in {RUNS}/")
    for job in jobs:
        cfg = OmegaConf.merge(OmegaConf.load(job / CONFIG_FILE), changes)
        typed = OmegaConf.merge(OmegaConf.structured(CheckpointConfig), cfg.checkpoint)
        settings = OmegaConf.to_object(typed)
        assert isinstance(settings, CheckpointConfig)
        if not settings.store:
            raise UserError(f"{job}: was run without checkpoint.store=...; give one")
        steps = push_job(job.absolute(), settings, print)
        print(f"{job}: steps {', '.join(map(str, steps)) or 'none'} are in {settings.store}")


def _hide_verbs_from_completion() -> None:
    """Hydra completes the line in this variable, and knows no verbs."""
    if "COMP_LINE" in os.environ:
        verbs = rf"(?<=\s)({'|'.join(VERBS)})\s"
        os.environ["COMP_LINE"] = re.sub(verbs, "", os.environ["COMP_LINE"])


def _split(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The verb, which may stand anywhere, and the rest."""
    # These take words of their own.
    if arguments and arguments[0] in ("runs", "resume", "push", "export"):
        return arguments[0], list(arguments[1:])
    bare = [
        word
        for before, word in pairwise(["", *arguments])
        if re.fullmatch(r"[A-Za-z_]+", word) and before not in _FLAGS_WITH_VALUE
    ]
    unknown = [word for word in bare if word not in VERBS]
    if unknown:
        _exit(f"{unknown[0]}: no such verb (choose from: {', '.join(VERBS)})")
    rest = [word for word in arguments if word not in bare]
    if "plan" in bare:
        bare.remove("plan")
        rest.append("hydra.launcher.plan_only=true")
    if len(bare) > 1:
        _exit(f"{' and '.join(bare)}: give one verb")
    return bare[0] if bare else "train", rest


def _with_known_environments(word: str) -> str:
    """`env=vf-wordle` is `env=wordle`: the spellings of the verifiers library are taken too."""
    group, _, given = word.partition("=")
    if group != "env":
        return word
    names = []
    for name in given.split(","):
        known = re.sub(r"^vf[-_]", "", name.lower()).replace("-", "_")
        own = [(CONF_DIR / "env" / f"{each}.yaml").is_file() for each in (name, known)]
        if own == [False, True]:
            if known == "tool_test" and name != "tool-test":
                print(f"env={name}: an old name; it is tool_test now", file=sys.stderr)
            name = known
        names.append(name)
    return f"env={','.join(names)}"


def _run_jobs(verb: str, overrides: list[str]) -> None:
    # Flags (--help, --cfg, shell completion) start no run and need no name.
    if not any(word.startswith("-") and word not in ("-m", "--multirun") for word in overrides):
        overrides = [*overrides, *_run_name(verb, overrides)]
    sys.argv = [sys.argv[0], *overrides]
    main = hydra.main(version_base=None, config_path=str(CONF_DIR), config_name="config")
    if {"--help", "-h"}.isdisjoint(overrides):
        main(_function(verb))()
    else:
        _copy_configs_once()
        main(print)()  # which is not called


def _copy_configs_once() -> None:
    """Hydra copies all that it has read for each group that --help lists: most of a second."""
    made: dict[tuple[str | None, ...], Any] = {}
    copied = ConfigLoaderImpl._parse_overrides_and_create_caching_repo

    def once(self: ConfigLoaderImpl, config_name: str | None, overrides: list[str]) -> Any:
        key = (config_name, *overrides)
        if key not in made:
            made[key] = copied(self, config_name, overrides)
        return made[key]

    ConfigLoaderImpl._parse_overrides_and_create_caching_repo = once  # type: ignore[method-assign]


def _function(verb: str) -> Callable[..., Any]:
    module, _, name = VERBS[verb].target.partition(":")
    found: Callable[..., Any] = getattr(import_module(module), name)
    return found


def _run_name(verb: str, overrides: Sequence[str]) -> list[str]:
    """The override that names the run: the given name if it is free, else a dated one."""
    given = dict(word.split("=", 1) for word in overrides if "=" in word)
    resume = given.get("resume", "").lower() == "true"
    if "name" in given:
        name = given["name"]
        if not re.fullmatch(r"[A-Za-z0-9][\w.+-]{0,63}", name):
            _exit(f"name={name}: use up to 64 letters, digits and . _ + -")
        if resume or "hydra.sweep.dir" in given or not (RUNS / name).exists():
            return []
        _exit(f"name={name}: {RUNS / name} exists; add resume=true to go on, or take another name")
    label = given.get("experiment") or given.get("env") or "game2048"
    label = re.sub(r"[^\w.+-]", "+", label) + ("-evaluate" if verb == "evaluate" else "")
    if resume:
        dated = re.compile(re.escape(label) + r"-\d{4}-\d{6}(-\d+)?")
        runs = [p for p in RUNS.glob("*") if dated.fullmatch(p.name)] if RUNS.is_dir() else []
        if not runs:
            _exit(f"resume=true: no run {RUNS / label}-* to go on with; give its name=...")
        return [f"name={max(runs, key=lambda p: p.stat().st_mtime).name}"]
    name = f"{label}-{time.strftime('%m%d-%H%M%S')}"
    taken = [n for n in (name, *(f"{name}-{i}" for i in range(2, 100))) if not (RUNS / n).exists()]
    return [f"name={taken[0]}"]


def _verb_help() -> str:
    return "\n".join(f"  {name:<9} {verb.help}" for name, verb in VERBS.items())


def _exit(message: str, code: int = 1) -> None:
    print(message, file=sys.stderr)
    sys.exit(code)
