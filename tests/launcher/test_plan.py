"""What a launch shows and refuses before anything is spent, and what it sends along."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import HydraContext, RunMode
from hydra_modal_jobs import LaunchRefused, Secrets, bundle, plan
from hydra_modal_jobs.backends.modal import ModalBackend
from hydra_modal_jobs.config import ImageConf, ModalJobsConf, SecretsConf, VolumesConf
from hydra_modal_jobs.jobs.compose import compose
from hydra_modal_jobs.jobs.job import Job, cost_key
from hydra_modal_jobs.names import valid_name, volume_names
from hydra_modal_jobs.prices import usd_per_hour
from hydra_modal_jobs.sent_files import is_never_sent, is_not_config, sent_files

from rl_experiments.commands.train import train
from rl_experiments.config.registration import register
from rl_experiments.paths import CONF_DIR
from tests.support.paths import CHECKOUT
from tests.support.program import Program


@pytest.fixture
def context() -> Iterator[HydraContext]:
    register()
    with initialize_config_dir(version_base=None, config_dir=str(CONF_DIR)):
        loader = GlobalHydra.instance().config_loader()
        from hydra._internal.callbacks import Callbacks

        yield HydraContext(config_loader=loader, callbacks=Callbacks())


def composed(context: HydraContext, folder: Path, *overrides: str, num: int = 0) -> Job:
    words = [*overrides, "name=x", f"hydra.sweep.dir={folder}/x"]
    master = context.config_loader.load_configuration("config", words, RunMode.MULTIRUN)
    return compose(context, train, master, words, num=num)


def cells(printed: str, job: int) -> list[str]:
    """A job's row of the plan."""
    line = next(line for line in printed.splitlines() if re.match(rf"\s*{job}\s\s", line))
    return re.split(r"\s{2,}", line.strip())


def test_a_plan_has_a_row_a_job_and_a_sum(program: Program, tmp_path: Path) -> None:
    done = program("plan", "gpu=a10g,h100", "trainer.learning_rate=1e-6,3e-6")
    assert (done.returncode, done.stderr) == (0, "")
    assert "list prices of 2026-09-24" in done.stdout
    rows = [cells(done.stdout, job) for job in range(4)]
    assert [row[1] for row in rows] == [
        f"gpu={gpu} trainer.learning_rate={rate}"
        for gpu in ("a10g", "h100")
        for rate in ("1e-06", "3e-06")
    ]
    # USD per hour of the GPU with an eighth of a core and of a GiB; four attempts of its timeout.
    rest = 0.125 * (0.0000131 + 0.00000222) * 3600
    total = 0.0
    for row, gpu, per_second, timeout in (
        (rows[0], "A10G", 0.000306, 7200),
        (rows[3], "H100", 0.001097, 14400),
    ):
        per_hour = per_second * 3600 + rest
        high = per_hour * 4 * timeout / 3600
        assert row[2:] == [gpu, f"{per_hour:.2f}", "-", "-", f"{high:.2f}", "-"]
        total += 2 * high
    assert f"{total:.2f}" in done.stdout
    assert list(tmp_path.iterdir()) == []  # nothing is left of it


def test_a_plan_is_of_the_whole_sweep(program: Program) -> None:
    """It is also what a budget is held against, however the sweeper divides the jobs."""
    seeds = ["plan", "gpu=h100", "seed=1,2,3,4,5"]
    whole = program(*seeds)
    in_batches = program(*seeds, "hydra.sweeper.max_batch_size=2")
    assert (in_batches.returncode, in_batches.stderr) == (0, "")
    assert [cells(in_batches.stdout, job) for job in range(5)] == [
        cells(whole.stdout, job) for job in range(5)
    ]
    optuna = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=20", "hydra.sweeper.n_jobs=2"]
    trials = program("plan", *optuna, "gpu=h100", "seed=range(1,9)")
    assert trials.returncode == 0, trials.stderr
    each = float(cells(whole.stdout, 0)[6])
    for count, row in ((18, r"\.\.\. +18 more.*"), (20, r"all +20 jobs .*")):
        match = re.search(rf"{row}\s(\S+)\s*$", trials.stdout, re.M)
        assert match is not None, trials.stdout
        assert float(match[1]) == pytest.approx(count * each, rel=0.001)
    for words in ([*seeds, "hydra.sweeper.max_batch_size=2"], ["plan", "gpu=h100", *optuna]):
        refused = program(*words, f"budget.max_usd={4.5 * each:.2f}")
        assert refused.returncode == 1 and "budget.max_usd" in refused.stderr
    detached = program("plan", *optuna, "gpu=h100", "hydra.launcher.detach=true")
    assert detached.returncode == 1
    assert "hydra.launcher.detach=true: OptunaSweeper chooses jobs by" in detached.stderr


def test_a_plan_of_local_jobs_has_times_and_no_prices(program: Program) -> None:
    asked = ["evaluate", "policy=random,merge_greedy", "num_examples=5"]
    assert program(*asked, "name=a").returncode == 0
    done = program("plan", *asked)
    *job, seconds = cells(done.stdout, 0)[1:]
    assert job == ["policy=random", "local"] and re.fullmatch(r"\d+ s", seconds)
    assert "USD" not in done.stdout


def test_fallbacks_and_regions_have_their_price() -> None:
    low, high = usd_per_hour(ModalJobsConf(gpu="H100", gpu_fallback=["A100-80GB"]))
    assert low is not None and high is not None and low < high
    eight = usd_per_hour(ModalJobsConf(gpu="H100", gpu_count=8))[1]
    assert eight == pytest.approx(8 * 0.001097 * 3600, rel=0.01)
    plain, broad, narrow = (
        usd_per_hour(ModalJobsConf(gpu="L4", region=region))[1] or 0.0
        for region in (None, "eu", "us-east-1")
    )
    assert (broad / plain, narrow / plain) == pytest.approx((1.5, 1.75))
    assert usd_per_hour(ModalJobsConf(gpu="X1")) == (None, None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"gpu": "A10G", "gpu_count": 8}, "hydra.launcher.gpu_count=8: from 1 to 4 A10G"),
        ({"gpu": "H100", "gpu_count": 0}, "hydra.launcher.gpu_count=0: from 1 to 8 H100"),
        (
            {"gpu": "H100", "gpu_fallback": ["a10"], "gpu_count": 5},
            "hydra.launcher.gpu_count=5: from 1 to 4 a10",
        ),
        (
            {"gpu": "H100", "gpu_fallback": ["a100_80gb"]},
            "hydra.launcher.gpu_fallback: a100_80gb is not a valid GPU type; write A100-80GB",
        ),
        ({"gpu": "rtx_pro_6000"}, "hydra.launcher.gpu: rtx_pro_6000 .*; write RTX-PRO-6000"),
        ({"gpu": "H1000"}, r"hydra.launcher.gpu: H1000 .* \(Modal has T4, L4, .*"),
        ({"gpu": "T4", "image": ImageConf(requirements="no.txt")}, "requirements=no.txt: no such"),
    ],
)
def test_what_modal_does_not_have_is_known_in_the_plan(
    context: HydraContext, tmp_path: Path, overrides: dict[str, Any], named: str
) -> None:
    job = composed(context, tmp_path, "gpu=t4")
    job.settings = ModalJobsConf(**overrides)
    with pytest.raises(LaunchRefused, match=named) as refused:
        ModalBackend.check_job(job)
    assert "\n" not in str(refused.value)
    job.settings = ModalJobsConf(gpu="h100", gpu_fallback=["H100!", "a100"], gpu_count=8)
    ModalBackend.check_job(job)


@pytest.mark.slow
def test_jobs_that_cannot_be_in_one_launch_are_known_in_the_plan(
    context: HydraContext, tmp_path: Path
) -> None:
    jobs = [composed(context, tmp_path, "gpu=t4", num=num) for num in range(2)]
    ModalBackend.check_together(jobs)
    jobs[1].settings.gpu = "L4"
    jobs[0].settings.max_parallel = 1
    with pytest.raises(LaunchRefused, match=r"max_parallel=1: the jobs need 2 kinds"):
        ModalBackend.check_together(jobs)
    jobs[1].settings.image.apt = ["git"]
    with pytest.raises(LaunchRefused, match=r"image: job 1 has another image than job 0"):
        ModalBackend.check_together(jobs)


@pytest.mark.slow
def test_costs_are_expected_from_runs_of_the_same_shape(
    context: HydraContext, tmp_path: Path
) -> None:
    job = composed(context, tmp_path, "gpu=a10g", "trainer.learning_rate=1e-6")
    other = composed(context, tmp_path, "gpu=a10g", "trainer.max_steps=7")
    like = composed(context, tmp_path, "gpu=a10g", "trainer.learning_rate=9e-6")
    for number, (state, seconds) in enumerate(
        [("done", 1800), ("done", 3600), ("done", 5400), ("failed", 9)]
    ):
        folder = tmp_path / f"earlier/{number}/.job"
        folder.mkdir(parents=True)
        result = {"state": state, "seconds": seconds, "shape": cost_key(like)}
        (folder / "result.json").write_text(json.dumps(result))
    known, unknown = plan.estimate([job, other])
    per_hour = known.per_hour[1]
    assert per_hour is not None
    assert (known.seconds, known.low, known.expected) == (3600, per_hour / 2, per_hour)
    assert known.bound == known.expected and known.high == pytest.approx(per_hour * 8)
    assert (unknown.low, unknown.expected) == (None, None) and unknown.bound == unknown.high
    plan.refuse_above([known], per_hour * 1.1, spent=0.0)
    with pytest.raises(LaunchRefused, match="is expected to cost"):
        plan.refuse_above([known], per_hour * 1.1, spent=per_hour * 0.2)
    with pytest.raises(LaunchRefused, match="is expected to cost"):
        plan.refuse_above([known], per_hour * 2.5, spent=0.0, later_count=2)
    halved = plan.shares([known], 10.0, spent=2.0, later_count=1)
    assert halved == pytest.approx([4.0])
    shares = plan.shares([known, unknown], 10.0, spent=2.0)
    assert sum(share or 0.0 for share in shares) == pytest.approx(8.0)


REFUSED = [
    ("gpu=a10g budget.max_usd=3", "budget.max_usd=3", "8.87 USD", "gpu.timeout"),
    ("gpu=h100 gpu.count=9", "gpu.count=9", "from 1 to 8 H100"),
    ("gpu=h100 logger.report_to=[bogus]", "logger.report_to: no logger is called bogus"),
    ("gpu=h100 gpu.memory=0", "gpu.memory=0", "above 0"),
    ("gpu=h100 gpu.retries=11", "gpu.retries=11", "from 0 to 10"),
    ("gpu=h100 gpu.timeout=0", "gpu.timeout=0", "at least 1"),
    ("gpu=h100 hydra.launcher.volumes.cache=/root", "volumes", "/root"),
    ("gpu=h100 hydra.launcher.on_interrupt=maybe", "on_interrupt=maybe", "ask, cancel or leave"),
    ("gpu=h100 model.path=.", "model.path=.", "cannot see"),
    ("gpu=h100 trainer.num_generations=1", "trainer.num_generations=1", "at least 2"),
    ("seed=0,1 hydra.sweep.subdir=s", "hydra.sweep.subdir", "hydra.job.num"),
    ("gpu=h100 hydra.launcher.secrets.required=[NO_SUCH_KEY]", "NO_SUCH_KEY", ".env"),
    ("gpu=h100 logger.project=canary-4711-value", "WANDB_API_KEY", "oc.env"),
]


@pytest.mark.parametrize(("overrides", "named"), [(words, named) for words, *named in REFUSED])
def test_what_is_wrong_is_refused_in_one_line(
    program: Program, tmp_path: Path, overrides: str, named: list[str]
) -> None:
    (tmp_path / ".env").write_text("WANDB_API_KEY=canary-4711-value\n")
    done = program("plan", *overrides.split())
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert all(words in done.stderr for words in named)
    assert "canary-4711-value" not in done.stdout + done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_launch_without_an_account_is_refused(program: Program, tmp_path: Path) -> None:
    none = {"MODAL_CONFIG_PATH": str(tmp_path / "none.toml")}
    done = program("gpu=a10g", **none, MODAL_TOKEN_ID="", MODAL_TOKEN_SECRET="")
    assert done.returncode == 1
    assert done.stderr == "no Modal account is set up; run: modal token new (or use gpu=local)\n"


@pytest.mark.slow
def test_everything_that_a_job_imports_goes_along_and_nothing_secret(
    context: HydraContext, tmp_path: Path
) -> None:
    job = composed(context, tmp_path, "gpu=a10g")
    sent = bundle.sources([job])
    by_name = {str(remote.relative_to("/root")): path for path, remote in sent.items()}
    for name in ("rl_experiments", "environments", "conf", "hydra_modal_jobs"):
        assert by_name[name].is_dir(), name
    assert by_name["conf"] == CONF_DIR and bundle.is_config_folder(CONF_DIR, [job])
    assert CHECKOUT not in sent and not any("site-packages" in str(path) for path in sent)
    assert all(remote.is_relative_to(PurePosixPath("/root")) for remote in sent.values())
    for name in (".env", ".env.local", "a/.git/config", ".venv/lib/x.py", "runs/a/0/log.txt"):
        assert is_never_sent(Path(name)), name
    for name in ("__pycache__/a.pyc", "keys/id_rsa", "certs/a.pem", ".netrc", "wandb/run/x"):
        assert is_never_sent(Path(name)), name
    for name in ("game.py", "words.txt", "data/questions.jsonl", "README.md"):
        assert not is_never_sent(Path(name)), name
    assert is_not_config(Path("notes.txt")) and not is_not_config(Path("env/a.yaml"))


def test_no_secret_no_hidden_file_and_nothing_that_git_ignores_is_sent(tmp_path: Path) -> None:
    package = tmp_path / "pkg"
    secret = [".git-credentials", ".npmrc", "id_ecdsa", "service-account.json", ".kube/config"]
    secret += ["token.txt", "hf_token", "GCP-Credentials.JSON", "client_secret.json", "prod.ENV"]
    secret += ["prod.env.bak", "auth.json", "a/.cache/tok", "aws_credentials", "openai_key.txt"]
    secret += ["api-keys.yaml", "cert.PEM", "kubeconfig.yaml", "core.1234", "trackio/db", "x.pfx"]
    ignored = ["data/big.bin", "notes.tmp", "deep/data/x"]
    sent = ["__init__.py", "secrets.py", "tokenizer.json", "special_tokens_map.json", "words.txt"]
    sent += ["keyboard.txt", "deep/x.py", "credentials.md"]
    for name in [*secret, *ignored, *sent]:
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text("12345")
    (tmp_path / ".gitignore").write_text("data/\n*.tmp\n")
    (tmp_path / "id_rsa").touch()
    (package / "harmless").symlink_to(tmp_path / "id_rsa")
    without_git = sent_files(package, is_config=False)
    assert {str(path) for path in without_git} == {*sent, *ignored}
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    files = sent_files(package, is_config=False)
    assert {str(path) for path in files} == {*sent} and set(files.values()) == {5}
    (tmp_path / ".gitignore").write_text("pkg/\n")  # as an environment is that has packages
    assert sent_files(package, is_config=False) == without_git


@pytest.mark.slow
def test_the_plan_says_what_is_sent(context: HydraContext, tmp_path: Path) -> None:
    line = bundle.contents([composed(context, tmp_path, "gpu=a10g")])
    assert re.fullmatch(r"Sent along: \d+ files, \d\.\d MB \(.*rl_experiments \d+.*\)", line)
    assert "conf " in line and "hydra_modal_jobs " in line


def test_names_are_made_valid_and_stay_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    assert valid_name("rl-experiments-ann-x_1.0") == "rl-experiments-ann-x_1.0"
    made = [valid_name(name) for name in ("a b", "a-b", "a/b", "é", "x" * 80, "x" * 81)]
    assert len(set(made)) == 6
    assert all(re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name) for name in made)
    for name in ("EXPERIMENTER", "EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)


def test_volumes_of_the_original_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EXPERIMENTER", "EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / ".env").write_text("EXPERIMENTER=ann\n")
    settings = ModalJobsConf(
        volumes=VolumesConf(prefix="verifiers"), secrets=SecretsConf(dotenv=f"{tmp_path}/.env")
    )
    assert volume_names(settings) == {
        "/cache": "verifiers-cache-ann-default",
        "/outputs": "verifiers-outputs-ann-default",
    }
    monkeypatch.setenv("EXPERIMENT_NAME", "long run")
    names = volume_names(settings)
    assert names["/cache"].startswith("verifiers-cache-ann-long-run-")
    settings.volumes.outputs = "/cache"
    with pytest.raises(LaunchRefused, match=r"hydra\.launcher\.volumes\.cache"):
        volume_names(settings)


def test_secrets_come_from_dotenv_and_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "of-the-environment")
    monkeypatch.setenv("WANDB_API_KEY", "this-one-wins")
    monkeypatch.setenv("UNRELATED_TOKEN", "stays-here")
    (tmp_path / ".env").write_text("WANDB_API_KEY=of-the-file\nEXPERIMENTER=ann\nOPENAI_API_KEY=\n")
    secrets = Secrets.load(SecretsConf(dotenv=f"{tmp_path}/.env", environment=["HF_TOKEN"]))
    assert secrets.names == ["HF_TOKEN", "WANDB_API_KEY"]
    assert secrets.values()["WANDB_API_KEY"] == "this-one-wins"
    assert secrets.redact("key=this-one-wins!") == "key=[WANDB_API_KEY]!"
    assert "wins" not in repr(secrets)


def test_the_example_has_every_variable_that_jobs_are_given() -> None:
    lines = (CHECKOUT / ".env.example").read_text().splitlines()
    example = {line.partition("=")[0] for line in lines if line and not line.startswith("#")}
    launcher = yaml.safe_load((CONF_DIR / "hydra/launcher/rl.yaml").read_text())
    assert example == {
        *launcher["secrets"]["environment"],
        *("EXPERIMENTER", "EXPERIMENT_NAME"),
    }


@pytest.mark.slow
def test_gpus_have_the_resources_of_the_originals(context: HydraContext, tmp_path: Path) -> None:
    @functools.cache
    def resources(gpu: str) -> tuple[object, ...]:
        settings = composed(context, tmp_path, f"gpu={gpu}").settings
        return settings.gpu, settings.cpu, settings.memory, settings.timeout

    assert resources("a10g") == ("A10G", None, None, 7200)
    assert resources("a100_40gb") == ("A100-40GB", 8.0, 32768, 14400)
    assert resources("a100") == resources("a100_80gb") == ("A100-80GB", 8.0, 32768, 14400)
    kinds = {path.stem for path in (CONF_DIR / "gpu").glob("*.yaml")} - {"local", "a100"}
    assert {resources(kind)[0] for kind in kinds} == {
        *("T4", "L4", "A10G", "L40S", "A100-40GB", "A100-80GB", "H100", "H200", "B200")
    }


def test_the_image_has_the_versions_that_are_installed_here() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    launcher = yaml.safe_load((CONF_DIR / "hydra/launcher/rl.yaml").read_text())
    assert (
        launcher["image"]["pip"].startswith("${extras:vllm,")
        and "vllm" in project["optional-dependencies"]
    )
    for line in (CHECKOUT / "requirements.lock").read_text().splitlines():
        name, _, pinned = line.partition("==")
        assert version(name).partition("+")[0] == pinned, name
