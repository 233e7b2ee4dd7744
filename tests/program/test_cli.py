"""The command line as a new user tries it: mistakes, help, configurations, evaluation, play."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from statistics import NormalDist, fmean, stdev
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from environments import evaluation_seed
from environments.game2048 import Game2048
from rl_experiments.config.registration import register
from rl_experiments.config.schema import TrainerConfig
from rl_experiments.paths import CONF_DIR
from rl_experiments.preflight import check
from rl_experiments.stats.intervals import rate
from tests.support.paths import OUTSIDE
from tests.support.program import SMALL, Program, command

SCRIPT = str(Path(sys.executable).parent / "rl-experiments")
PATH = os.pathsep.join([str(OUTSIDE), *filter(None, [os.environ.get("PYTHONPATH")])])
HEAVY = {"torch", "trl", "transformers", "modal", "wandb", "matplotlib", "datasets"}

# What is typed; what the one line must hold.
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
    ("train evaluate", "train", "evaluate", "one verb"),
    ("env=[a,b", "env=[a,b"),
    ("name=../x", "name=../x", "letters"),
    ("name=taken", "name=taken", "resume=true", "another name"),
    ("resume=true", "resume=true", "name="),
]


@contextmanager
def composed(*overrides: str) -> Iterator[DictConfig]:
    register()
    with initialize_config_dir(version_base=None, config_dir=str(CONF_DIR)):
        yield compose(config_name="config", overrides=["name=test", *overrides])


def files_under(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF_DIR / group).glob("*.yaml"))


@pytest.mark.parametrize("typed, says", [(m[0], m[1:]) for m in MISTAKES], ids=lambda v: str(v))
def test_a_mistake_ends_in_one_line(
    program: Program, tmp_path: Path, typed: str, says: tuple[str, ...]
) -> None:
    runs = tmp_path / "runs"
    if "taken" in typed:
        (runs / "taken" / "0").mkdir(parents=True)
    before = files_under(runs)
    done = program(*typed.split())
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    for words in says:
        assert words in done.stderr
    assert files_under(runs) == before


def test_a_mistake_is_told_before_anything_heavy_is_loaded(
    program_environment: dict[str, str], tmp_path: Path
) -> None:
    for typed in (["trainer.max_steps=-1"], ["evaluate", "policy=randm"]):
        assert not HEAVY & imported(typed, program_environment, tmp_path)


def imported(arguments: list[str], environment: dict[str, str], cwd: Path) -> set[str]:
    """The top-level packages that the program imports."""
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


def test_the_art_experiment_has_the_settings_of_its_original(program: Program) -> None:
    done = program("experiment=game2048_art", "--cfg", "job")
    assert done.returncode == 0, done.stderr
    cfg: Any = OmegaConf.create(done.stdout)
    expected = {
        "env.rules": "art",
        "env.win_value": 128,
        "env.size": 4,
        "env.max_moves": None,
        "env.parser": "strict",
        "env.hints": False,
        "env.earlier_turns": None,
        "gpu.type": "A10G",
        "gpu.timeout": 7200,
        "model.path": "Qwen/Qwen2.5-3B-Instruct",
        "model.max_length": 8192,
        "model.lora.enabled": True,
        "model.lora.r": 8,
        "model.lora.alpha": 16,
        "trainer.max_steps": 40,
        "trainer.num_generations": 18,
        "trainer.learning_rate": 1e-5,
        "trainer.adam_beta1": 0.9,
        "trainer.adam_beta2": 0.99,
        "trainer.weight_decay": 0.1,
        "trainer.max_grad_norm": 0.1,
        "trainer.epsilon": 0.2,
        "trainer.beta": 0.0,
        "trainer.max_completion_length": 128,
        "reward.credit": "episode",
    }
    assert {key: OmegaConf.select(cfg, key) for key in expected} == expected
    assert len(cfg.model.lora.target_modules) == 7
    trainer = cfg.trainer  # one group of 18 games, and one optimizer step, each generation
    assert trainer.per_device_train_batch_size * trainer.steps_per_generation == 18
    assert trainer.steps_per_generation == trainer.gradient_accumulation_steps


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


def test_trainer_settings_are_trls_own() -> None:
    from trl import GRPOConfig

    own = {field.name for field in fields(TrainerConfig)} - {"extra", "target"}
    assert own <= {field.name for field in fields(GRPOConfig)}


def test_every_yaml_begins_by_saying_what_it_is() -> None:
    files = [*CONF_DIR.rglob("*.yaml"), *OUTSIDE.rglob("*.yaml")]
    assert len(files) > 20
    without = [
        f for f in files if not re.match(r"# (?!@package).|# @package \S+\n# .", f.read_text())
    ]
    assert without == []


@pytest.mark.parametrize("name", choices("model"))
def test_every_model_composes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = name in ("openai", "openrouter")
    for service in ("OPENAI", "OPENROUTER"):
        monkeypatch.setenv(f"{service}_API_KEY", "a key")
    words = [f"model.name={name}"] if remote else []
    with composed("env=game2048", f"model={name}", *words) as cfg:
        model = check(cfg).config.model
        assert model.name == name
        assert [bool(model.path), bool(model.scratch), bool(model.base_url)].count(True) == 1


@pytest.mark.parametrize("name", choices("gpu"))
def test_every_gpu_composes(name: str) -> None:
    with composed("env=game2048", f"gpu={name}") as cfg:
        same = {"a100": "a100_80gb"}.get(name, name)
        assert cfg.gpu.type.lower().replace("-", "_") == same
        assert cfg.model.name == ("tiny" if name == "local" else "qwen2_5_3b")
        assert OmegaConf.missing_keys(cfg) == set()


@pytest.mark.parametrize("typed", ["vf-wordle", "vf_wordle", "Wordle", "vf-tool-test"])
def test_an_environments_name_is_taken_in_any_spelling(program: Program, typed: str) -> None:
    done = program("evaluate", "policy=random", f"env={typed}", "num_examples=2")
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
    n, win_rate, *_ = row(scripted.stdout, "random")
    assert n == 200 and 0.35 < win_rate < 0.65
    settings = [word for word in SMALL if not word.startswith("env.")]
    settings += ["trainer.gradient_accumulation_steps=1", "trainer.gradient_checkpointing=false"]
    settings += ["trainer.max_completion_length=4", "trainer.learning_rate=1e-3", "name=parity"]
    trained = program("train", *parity, *settings, PYTHONPATH=PATH, COLUMNS="80")
    assert trained.returncode == 0, trained.stderr
    assert "…" not in trained.stdout  # no figure is cut off
    assert row(trained.stdout, "after")[0] == 12
    metrics = json_lines(tmp_path / "runs/parity/0/metrics.jsonl")
    assert metrics[-1]["step"] == 4


def row(printed: str, policy: str) -> list[float]:
    """The figures of a policy in the printed table."""
    line = next(x for x in printed.splitlines() if x.strip(" │┃|").split()[:1] == [policy])
    return [float(word) for word in re.findall(r"[+-]?\d+(?:\.\d+)?", line)]


def json_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def summary(episodes: list[dict[str, Any]]) -> list[float]:
    """n, win rate with Wilson's interval, mean reward with its interval."""
    n, z = len(episodes), NormalDist().inv_cdf(0.975)
    p = sum(episode["end"] == "won" for episode in episodes) / n
    # Wilson: the rates q whose distance to p is z standard errors at q, |p - q| = z sqrt(q(1-q)/n).
    a, b, c = 1 + z * z / n, -(2 * p + z * z / n), p * p
    root = (b * b - 4 * a * c) ** 0.5
    rewards = [episode["reward"] for episode in episodes]
    mean, half = fmean(rewards), z * stdev(rewards) / n**0.5
    wilson = [(-b - root) / (2 * a), (-b + root) / (2 * a)]
    return [n, p, *wilson, mean, mean - half, mean + half]


def test_evaluate_prints_what_its_episodes_say(program: Program, tmp_path: Path) -> None:
    asked = ["evaluate", "policy=merge_greedy", "num_examples=50"]
    first = program(*asked, "name=a")
    assert first.returncode == 0, first.stderr
    folder = tmp_path / "runs/a/0"
    file = folder / "evaluation/merge_greedy.jsonl"
    episodes = json_lines(file)
    assert [episode["seed"] for episode in episodes] == [evaluation_seed(i) for i in range(50)]
    printed = row(first.stdout, "merge_greedy")
    assert printed == pytest.approx(summary(episodes), abs=0.00051)
    assert 0 < printed[1] < 1  # else the intervals would show little
    saved = json.loads((folder / "evaluation.json").read_text())["policies"]
    figures = [*saved[0]["win_rate"].values(), *saved[0]["reward"].values()]
    assert [saved[0]["n"], *figures] == pytest.approx(summary(episodes), rel=1e-5)
    assert saved[0]["turns"] == fmean(episode["turns"] for episode in episodes)
    assert [policy["policy"] for policy in saved] == ["merge_greedy"]
    second = program(*asked, "name=b")
    assert row(second.stdout, "merge_greedy") == printed
    assert (tmp_path / "runs/b/0/evaluation/merge_greedy.jsonl").read_text() == file.read_text()

    whole, result = file.read_text(), (folder / "evaluation.json").read_text()
    lines = whole.splitlines(keepends=True)
    marked = lines[0].replace("{", '{"kept": 1, ', 1)
    file.write_text("".join([marked, *lines[1:20]]) + lines[20][: len(lines[20]) // 2])
    (folder / "evaluation.json").unlink()
    resumed = program(*asked, "name=a", "resume=true")
    assert resumed.returncode == 0, resumed.stderr
    assert row(resumed.stdout, "merge_greedy") == printed
    assert (folder / "evaluation.json").read_text() == result
    assert file.read_text() == "".join([marked, *lines[1:]])  # what was played is not replayed


def test_a_sweep_has_a_folder_for_each_job(program: Program, tmp_path: Path) -> None:
    done = program("evaluate", "policy=random,random_legal", "num_examples=20", "name=s")
    assert done.returncode == 0, done.stderr
    for number, policy in enumerate(["random", "random_legal"]):
        saved = json.loads((tmp_path / f"runs/s/{number}/evaluation.json").read_text())
        assert [(p["policy"], p["n"]) for p in saved["policies"]] == [(policy, 20)]
        assert row(done.stdout, policy)[0] == 20


def test_a_sweep_with_a_job_that_is_wrong_does_not_begin(program: Program, tmp_path: Path) -> None:
    done = program("evaluate", "policy=random,randm", "num_examples=20", "name=s")
    assert done.returncode == 1 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and "policy=randm" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_play_by_hand_through_a_pipe(program_environment: dict[str, str], tmp_path: Path) -> None:
    done = subprocess.run(
        command(["play", "seed=3", "env.max_moves=2"]),
        input="l\n<move>up</move>\nn\n",
        cwd=tmp_path,
        env=program_environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stderr == ""
    assert Game2048().reset(evaluation_seed(3)) in done.stdout
    assert re.search(r"<move>left</move>.*<move>up</move>.*truncated: reward", done.stdout, re.S)
    assert list(tmp_path.iterdir()) == []


def test_play_shows_a_policy_through_a_pipe(program: Program) -> None:
    done = program("play", "policy=merge_greedy", "seed=3", "env.win_value=16")
    assert done.returncode == 0 and done.stderr == ""
    assert Game2048().reset(evaluation_seed(3)) in done.stdout
    assert re.search(r"won: reward 2.000 after \d+ turns", done.stdout)


def test_a_rate_lies_within_its_interval() -> None:
    for n in range(1, 1001):
        for wins in {0, 1, n // 2, n}:
            value, low, high = rate(wins, n)
            assert 0 <= low <= value <= high <= 1
        assert rate(0, n).low == 0 and rate(n, n).high == 1
