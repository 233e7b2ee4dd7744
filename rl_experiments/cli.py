"""The command line: a verb, then Hydra overrides; every mistake ends in one line."""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rl_experiments import interrupts
from rl_experiments.errors import UserError, explain, is_storage_error, storage_error
from rl_experiments.schema import CONF_DIR, CONFIG_FILE, register, search_outside

RUNS = Path("runs")


class Verb(NamedTuple):
    """What a verb does: `module:function` of a Hydra task, or of a function of the overrides."""

    help: str
    target: str
    is_job: bool = True  # composed by Hydra, run by its launcher, with a run folder


VERBS = {
    "train": Verb("train a policy; what no verb means", "rl_experiments.train:train"),
    "evaluate": Verb(
        "play the evaluation seeds: a checkpoint=, a model=, or a scripted policy=",
        "rl_experiments.evaluate:evaluate",
    ),
    "play": Verb(
        "play in the terminal, or watch a checkpoint= or policy= play",
        "rl_experiments.play:play",
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
    register()
    search_outside(overrides)
    OmegaConf.register_new_resolver("verbs", _verb_help, replace=True)
    # Threads that spin while they wait bring training to a stand on a machine with other work.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    full = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here, where they become one line
    try:
        if VERBS[verb].is_job:
            _run_job(verb, overrides, full=full)
        else:
            _function(verb)(overrides)
    except KeyboardInterrupt as stop:
        _exit(str(stop) or "Stopped.", code=130)
    except Exception as error:
        if interrupts.caused(error):
            _exit("Stopped.", code=130)
        line = _line(error)
        if line is None or full:
            raise
        _exit(line)


def _hide_verbs_from_completion() -> None:
    """Hydra completes the line in this variable, and knows no verbs."""
    if "COMP_LINE" in os.environ:
        verbs = rf"(?<=\s)({'|'.join(VERBS)})\s"
        os.environ["COMP_LINE"] = re.sub(verbs, "", os.environ["COMP_LINE"])


def _split(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The verb, which may stand anywhere, and the rest."""
    bare = [
        word
        for before, word in pairwise(["", *arguments])
        if re.fullmatch(r"[A-Za-z_]+", word) and before not in _FLAGS_WITH_VALUE
    ]
    unknown = [word for word in bare if word not in VERBS]
    if unknown:
        _exit(f"{unknown[0]}: no such verb (choose from: {', '.join(VERBS)})")
    if len(bare) > 1:
        _exit(f"{' and '.join(bare)}: give one verb")
    verb = bare[0] if bare else "train"
    rest = list(arguments)
    if bare:
        rest.remove(verb)
    return verb, rest


def _run_job(verb: str, overrides: list[str], *, full: bool) -> None:
    # Flags (--help, --cfg, shell completion) start no run and need no name.
    if not any(word.startswith("-") and word not in ("-m", "--multirun") for word in overrides):
        overrides = [*overrides, *_run_name(verb, overrides)]
    sys.argv = [sys.argv[0], *overrides]
    failures: list[str] = []
    unopened: set[Path] = set()

    def task(cfg: DictConfig) -> object:
        # The verb's heavy imports wait until Hydra has found the configuration sound.
        try:
            return _function(verb)(cfg)
        except Exception as error:
            line = _line(error)
            if line is None or full:
                raise
            failures.append(line)
            folder = Path(HydraConfig.get().runtime.output_dir)
            if not (folder / CONFIG_FILE).exists():  # refused before its run was opened
                shutil.rmtree(folder, ignore_errors=True)
                unopened.add(folder.parent)
            return None  # the sweep's other jobs go on

    hydra.main(version_base=None, config_path=str(CONF_DIR), config_name="config")(task)()
    for folder in unopened:
        if not any(path.is_dir() for path in folder.glob("*")):
            shutil.rmtree(folder, ignore_errors=True)
    if failures:
        _exit("\n".join(failures))


def _function(verb: str) -> Callable[..., object]:
    module, _, name = VERBS[verb].target.partition(":")
    found: Callable[..., object] = getattr(import_module(module), name)
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
    label = re.sub(r"[^\w.+-]", "+", label) + ("" if verb == "train" else f"-{verb}")
    if resume:
        dated = re.compile(re.escape(label) + r"-\d{4}-\d{6}(-\d+)?")
        runs = [p for p in RUNS.glob("*") if dated.fullmatch(p.name)] if RUNS.is_dir() else []
        if not runs:
            _exit(f"resume=true: no run {RUNS / label}-* to go on with; give its name=...")
        return [f"name={max(runs, key=lambda p: p.stat().st_mtime).name}"]
    name = f"{label}-{time.strftime('%m%d-%H%M%S')}"
    taken = [n for n in (name, *(f"{name}-{i}" for i in range(2, 100))) if not (RUNS / n).exists()]
    return [f"name={taken[0]}"]


def _line(error: Exception) -> str | None:
    """What to tell the user; None for a fault of the program, whose traceback is wanted."""
    if isinstance(error, UserError | HydraException | OmegaConfBaseException):
        return explain(error)
    if isinstance(error, OSError) and is_storage_error(error):
        return str(storage_error(error))
    return None


def _verb_help() -> str:
    return "\n".join(f"  {name:<9} {verb.help}" for name, verb in VERBS.items())


def _exit(message: str, code: int = 1) -> None:
    print(message, file=sys.stderr)
    sys.exit(code)
