"""The command line as a new user meets it: mistakes, help, completion, names."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from rl_experiments.paths import CONF_DIR
from tests.support.paths import OUTSIDE
from tests.support.program import SMALL, Program, command
from tests.support.results import json_lines, table_row

SCRIPT = str(Path(sys.executable).parent / "rl-experiments")
PATH = os.pathsep.join([str(OUTSIDE), *filter(None, [os.environ.get("PYTHONPATH")])])
HEAVY = {"torch", "trl", "transformers", "modal", "wandb", "matplotlib", "datasets"}

# What a user types, and what the one line of the message must contain.
MISTAKES = [
    ("env=game2049", "env=game2049", "did you mean game2048"),
    ("model=tinny evaluate", "model=tinny", "did you mean tiny"),
    ("optimizer=adam", "optimizer", "trainer"),
    ("num_exmaples=5", "num_exmaples", "did you mean num_examples"),
    ("trainer.learning_rat=1", "trainer.learning_rat", "did you mean trainer.learning_rate"),
    ("trainer.max_steps=many", "trainer.max_steps", "'many'", "Integer"),
    ("trainer.loss_type=ppo", "trainer.loss_type", "dr_grpo"),
    ("resume=maybe", "resume", "'maybe'"),
    ("+foo=1", "foo", "no such setting"),
    ("+trainer.foo=1", "trainer.foo", "no such setting"),
    ("+model.lora.rank=4", "model.lora.rank", "no such setting"),
    ("trainer.max_steps=-1", "trainer.max_steps=-1", "at least 1"),
    ("trainer.num_generations=3", "trainer.num_generations=3", "64 episodes"),
    ("checkpoint.every_steps=3", "checkpoint.every_steps=3", "multiple of 8"),
    ("+trainer.extra.learning_rate=1", "trainer.extra.learning_rate", "trainer.learning_rate"),
    ("trainer.extra.top_k=5", "trainer.extra.top_k", "+trainer.extra.top_k"),
    ("env.win_valu=64", "env.win_valu", "did you mean env.win_value"),
    ("+env.colour=red", "env.colour", "no such setting"),
    ("env.win_value=100", "env.win_value=100", "power of two"),
    ("env._target_=os.system", "env._target_=os.system"),
    ("env._target_=pathlib.Path", "env._target_=pathlib.Path", "Environment"),
    ("evaluate policy=randm", "policy=randm", "did you mean random"),
    ("evaluate checkpoint=/no/such", "checkpoint=/no/such", "no such folder"),
    ("play checkpoint=/no/such", "checkpoint=/no/such", "no such folder"),
    ("evalute policy=random", "evalute", "evaluate"),
    ("learning_rate=1e-5", "learning_rate", "did you mean trainer.learning_rate"),
    ("+lr=1e-5", "lr", "did you mean trainer.learning_rate"),
    ("budget=5", "budget", "budget.max_usd"),
    ("gpu=A10G", "gpu=A10G", "did you mean a10g"),
    ("gpu=h100:8", "gpu=h100:8", "gpu=h100 gpu.count=8"),
    ("model=Qwen/Qwen2.5-3B-Instruct", "model=Qwen/", "write model=qwen2_5_3b"),
    ("model=someone/else-7B", "model=someone/else-7B", "model.path=someone/else-7B"),
    ("plan hydra/launcher=basic", "hydra/launcher=basic", "without gpu, plan and budget"),
    ("evaluate ++hydra.mode=RUN policy=random", "hydra.mode=RUN", "without gpu"),
    ("plan evaluate policy=random --run name=x", "--run", "without gpu"),
    ("-r", "-r", "without gpu"),
    ("plan play", "plan play", "evaluate"),
    ("name=null", "name=null", "leave it out"),
    ("train evaluate", "train", "evaluate", "one verb"),
    ("env=[a,b", "env=[a,b"),
    ("name=../x", "name=../x", "letters"),
    ("name=taken", "name=taken", "resume=true", "another name"),
    ("resume=true", "resume=true", "name="),
]


def choices(group: str) -> list[str]:
    """Return the choices of a group of conf/."""
    return sorted(path.stem for path in (CONF_DIR / group).glob("*.yaml"))


@pytest.mark.parametrize("typed, says", [(m[0], m[1:]) for m in MISTAKES], ids=lambda v: str(v))
def test_a_mistake_ends_in_one_line(
    program: Program, tmp_path: Path, typed: str, says: tuple[str, ...]
) -> None:
    runs = tmp_path / "runs"
    if "taken" in typed:
        (runs / "taken" / "0").mkdir(parents=True)
    before = sorted(runs.rglob("*"))
    done = program(*typed.split())
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    for words in says:
        assert words in done.stderr
    assert sorted(runs.rglob("*")) == before


def test_a_mistake_is_reported_before_anything_heavy_is_imported(
    program_environment: dict[str, str], tmp_path: Path
) -> None:
    for typed in (["trainer.max_steps=-1"], ["evaluate", "policy=randm"]):
        assert not HEAVY & imported(typed, program_environment, tmp_path)


def imported(arguments: list[str], environment: dict[str, str], cwd: Path) -> set[str]:
    """Run the program, and return the top-level packages that it imports."""
    typed = [sys.executable, "-X", "importtime", *command(arguments)[1:]]
    done = subprocess.run(typed, cwd=cwd, env=environment, capture_output=True, text=True)
    names = re.findall(r"^import time:.*\|\s*([\w.]+)$", done.stderr, re.MULTILINE)
    assert "rl_experiments.cli" in names
    return {name.partition(".")[0] for name in names}


def test_help_is_complete_and_loads_nothing_heavy(
    program: Program, program_environment: dict[str, str], tmp_path: Path
) -> None:
    done = program("--help")
    assert done.returncode == 0 and done.stderr == ""
    verbs = ["train", "evaluate", "play", "plan", "runs", "resume"]
    groups = [path.name for path in CONF_DIR.iterdir() if path.is_dir() and path.name != "hydra"]
    for word in [*(f"  {verb} " for verb in verbs), *(f"\n{group}: " for group in groups)]:
        assert word in done.stdout
    for model in choices("model"):
        assert model in done.stdout
    assert not HEAVY & imported(["--help"], program_environment, tmp_path)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "typed, model",
    [
        ("--cfg job", "tiny"),
        ("gpu=a10g --cfg job", "qwen2_5_3b"),
        ("--cfg job gpu=a10g", "qwen2_5_3b"),
        ("gpu=a10g model=tiny --cfg job", "tiny"),
        ("evaluate --cfg job", "tiny"),
        (f"hydra.searchpath=[file://{OUTSIDE}/conf] env=parity gpu=t4 --cfg job", "qwen3_0_6b"),
    ],
)
def test_cfg_names_the_model(program: Program, tmp_path: Path, typed: str, model: str) -> None:
    done = program(*typed.split(), PYTHONPATH=PATH)
    assert done.returncode == 0, done.stderr
    assert OmegaConf.create(done.stdout).model.name == model
    if model.startswith("qwen"):  # where no preset replaces it
        assert "steps_per_generation: ${trainer.gradient_accumulation_steps}" in done.stdout
    assert not (tmp_path / "runs").exists()


def script(arguments: list[str], environment: dict[str, str], cwd: Path) -> str:
    done = subprocess.run(
        [SCRIPT, *arguments], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return done.stdout


def test_the_console_script_does_the_same(
    program: Program, program_environment: dict[str, str], tmp_path: Path
) -> None:
    for typed in (["--help"], ["--cfg", "job"]):
        assert script(typed, program_environment, tmp_path) == program(*typed).stdout


@pytest.mark.parametrize(
    "line, offered",
    [
        ("model=q", {f"model={name}" for name in choices("model") if name[0] == "q"}),
        ("evaluate model=t", {"model=tiny"}),
        ("trainer.learning", {"trainer.learning_rate="}),
        ("evaluate env.win_v", {"env.win_value="}),
        ("evaluate seed=3 nu", {"num_examples="}),
    ],
)
def test_tab_completes(
    program_environment: dict[str, str], tmp_path: Path, line: str, offered: set[str]
) -> None:
    typed = f"rl-experiments {line}"
    variables = {**program_environment, "COMP_LINE": typed, "COMP_POINT": str(len(typed))}
    assert set(script(["-sc", "query=bash"], variables, tmp_path).split()) == offered


@pytest.mark.parametrize("typed", ["vf-wordle", "vf_wordle", "Wordle", "vf-tool-test"])
def test_an_environments_name_is_accepted_in_any_spelling(program: Program, typed: str) -> None:
    done = program("plan", "evaluate", "policy=random", f"env={typed}", "num_examples=2")
    assert done.returncode == 0, done.stderr
    name = "tool_test" if "tool" in typed else "wordle"
    assert f"env={name} num_examples=2" in done.stdout
    assert ("env=vf-tool-test: an old name; it is tool_test now" in done.stderr) == (
        "tool" in typed
    )


def test_an_environment_from_outside(program: Program, tmp_path: Path) -> None:
    assert len([f for f in OUTSIDE.rglob("*") if f.suffix in (".py", ".yaml")]) == 2
    parity = ["env=parity", f"hydra.searchpath=[file://{OUTSIDE}/conf]"]
    scripted = program("evaluate", *parity, "policy=random", "num_examples=200", PYTHONPATH=PATH)
    assert scripted.returncode == 0, scripted.stderr
    n, win_rate, *_ = table_row(scripted.stdout, "random")
    assert n == 200 and 0.35 < win_rate < 0.65
    settings = [word for word in SMALL if not word.startswith("env.")]
    settings += ["trainer.gradient_accumulation_steps=1", "trainer.gradient_checkpointing=false"]
    settings += ["trainer.max_completion_length=4", "trainer.learning_rate=1e-3", "name=parity"]
    trained = program("train", *parity, *settings, PYTHONPATH=PATH, COLUMNS="80")
    assert trained.returncode == 0, trained.stderr
    assert "…" not in trained.stdout  # no figure is cut off
    assert table_row(trained.stdout, "after")[0] == 12
    metrics = json_lines(tmp_path / "runs/parity/0/metrics.jsonl")
    assert metrics[-1]["step"] == 4


@pytest.mark.parametrize(
    "typed", ["name=1e-5", "++name=1_000", "+name=007", "name=true", "name='été'"]
)
def test_a_run_is_called_what_was_typed(program: Program, tmp_path: Path, typed: str) -> None:
    done = program("evaluate", "policy=random", "num_examples=1", "env.max_moves=1", typed)
    assert done.returncode == 0, done.stderr
    name = typed.partition("=")[2].strip("'")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [name]
    assert OmegaConf.load(tmp_path / "runs" / name / "0/config.yaml").name == name
    again = program("evaluate", "policy=random", typed)
    assert f"runs/{name} exists; add resume=true" in again.stderr
    resumed = program("resume", name)
    assert "Every job of this run is done." in resumed.stdout


def test_each_verb_has_help(program: Program) -> None:
    for verb in ("play", "runs", "push", "export", "audit", "resume"):
        for typed in ([verb, "--help"], [verb, "-h"], ["help", verb]):
            done = program(*typed)
            assert done.returncode == 0 and done.stderr == ""
            assert done.stdout.startswith(f"{verb} ") or done.stdout.startswith(f"{verb}: ")
    assert program("help").stdout == program("--help").stdout
    assert re.fullmatch(r"rl-experiments \S+ \(Hydra \S+\)\n", program("--version").stdout)
