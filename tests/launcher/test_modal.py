"""Jobs on Modal by the real client, against the stand-in: what is sent, what comes back."""

from __future__ import annotations

import json
import re

import pytest

from tests.fakes.control_plane import ControlPlane
from tests.support.launching import Client, json_lines, settings

pytestmark = pytest.mark.slow


def test_each_job_of_a_sweep_over_gpus_gets_its_own_kind_of_container(
    client: Client, plane: ControlPlane
) -> None:
    """They share one app and one image."""
    plane.add_secret("art-secrets", {"TOKEN": "of the art"})
    resources = settings(
        gpu_fallback=["L4"],
        cpu=2,
        memory=4096,
        timeout=600,
        retries=2,
        region="eu",
        max_parallel=2,
        secrets__modal=["art-secrets"],
        image__pip=["trl==1.16.0", "package${x}"],
        image__pip_no_deps=["alone==1.0"],
        image__apt=["git"],
        image__python="3.11",
        image__env__COLOUR="blue",
    )
    launched = client.launch("gpu=A10G,H100", "x=1,2", *resources)

    functions = [plane.call(client.call(num)).function.name for num in range(4)]
    assert functions[:2] == functions[:1] * 2 and functions[2:] == functions[2:3] * 2
    assert set(plane.functions) == set(functions)
    first, second = (plane.functions[name] for name in functions[1:3])
    assert (first.gpus, second.gpus) == (("A10G", "L4"), ("H100", "L4"))
    for spec in (first, second):
        assert (spec.cpu, spec.memory, spec.timeout, spec.retries) == (2.0, 4096, 600, 2)
        assert (spec.max_containers, spec.regions, spec.secrets) == (1, ("eu",), ("art-secrets",))
        assert spec.volumes == {
            f"{client.mounts}/cache": "hydra-jobs-cache-me-tests",
            f"{client.mounts}/outputs": "hydra-jobs-outputs-me-tests",
        }
    assert first.image is second.image
    commands = "\n".join(first.image.commands)
    named = ("trl==1.16.0", "package1", "package2", "hydra-core", "git", "python:3.11")
    assert all(word in commands for word in named)
    assert re.search(r"--no-deps.*alone==1.0|alone==1.0.*--no-deps", commands)
    assert first.image.environment["COLOUR"] == "blue"
    assert first.image.environment["HF_HOME"] == f"{client.mounts}/cache/huggingface"
    (app,) = plane.apps
    assert app.name == "toy-me-toy" and app.stopped
    assert len(set(app.function_ids)) == 2

    assert [result["value"] for result in client.results()] == [1, 2, 1, 2]
    rows = re.findall(r"^ +(\d) +done +(\d) .* (\S+) +gpu=(\w+) x=(\d)", launched.out, re.M)
    assert [row[4] for row in rows] == ["1", "2", "1", "2"], launched.out
    assert [row[3] for row in rows] == ["A10G", "A10G", "H100", "H100"]
    assert app.id in launched.out


def test_the_log_is_shown_as_it_comes_and_files_come_back(
    client: Client, plane: ControlPlane
) -> None:
    """Checkpoints come back only when they are asked for."""
    text = "x" * 8192  # with it, the payload is too large for a message
    launched = client.launch("steps=2", f"text={text}")
    assert plane.rpcs["BlobCreate"] == 1
    expected = ["from step 0", "step 1", "step 2"]
    shown = [line for line in launched.out.splitlines() if re.match(r"\[0\] (from )?step", line)]
    assert shown == [f"[0] {line}" for line in expected]
    job = client.job()
    assert (job / "log.txt").read_text().splitlines() == expected
    assert len(json_lines(job / "metrics.jsonl")) == 2
    assert f"text: {text}" in (job / ".hydra/config.yaml").read_text()
    assert not (job / "checkpoints").exists()
    assert "2 files" in client.runs("runs", "pull", "toy", "--checkpoints").out
    assert sorted(path.name for path in (job / "checkpoints").iterdir()) == ["1", "2"]
    assert client.runs("runs", "logs", "toy").out.splitlines() == expected


def test_a_job_starts_once_for_each_gpu_of_its_container(
    client: Client, plane: ControlPlane
) -> None:
    """The result is that of rank 0, or the first failure."""
    client.launch("do=ranks,fail_second", "gpu=H100", *settings(gpu_count=2), code=1)
    assert plane.functions["h100x2"].gpus == ("H100:2",)
    first, second = client.results()
    assert first["value"] == "rank 0 of 2"
    assert {path.name for path in client.job().glob("rank-*")} == {"rank-0", "rank-1"}
    assert second["failure"]["line"] == "ValueError: no such luck on rank 1"
    assert second["attempts"] == 1


SCRIPT = """
import hydra

DATA = bytes(range(256)) * (20 << 12)

@hydra.main(version_base=None, config_path=None)
def main(cfg):
    return len(DATA)

main()
"""


def test_the_function_of_a_script_travels_with_20_megabytes_of_data(client: Client) -> None:
    """It cannot be imported by name, so it is pickled."""
    (client.folder / "script.py").write_text(SCRIPT)
    client.launch(
        "hydra/launcher=modal_jobs", "hydra.sweep.dir=runs/script", program="script.py -m"
    )
    (result,) = client.results(run="script")
    assert result["value"] == 20 << 20


def test_a_launch_above_the_budget_is_refused_and_a_job_that_spent_it_stops(
    client: Client, plane: ControlPlane
) -> None:
    capped = settings(max_usd=0.002)
    line = client.launch("gpu=H100", *capped, code=1).line
    assert "max_usd=0.002" in line and "may cost" in line
    assert plane.apps == [] and not client.job().exists()

    client.launch("gpu=H100", "name=before")  # from which the next is known to be cheap
    longer = ["gpu=H100", "steps=30", "seconds=0.1"]
    stopped = client.launch(*longer, *capped, code=1)
    assert "stopped (budget)" in stopped.out and "the budget is spent" in stopped.out
    (result,) = client.results()
    saved = result["status"]["step"]
    assert 0.002 <= result["usd"] < 0.006 and 0 < saved < 30

    again = client.launch(*longer, *settings(max_usd=1, resume=True))
    assert f"from step {saved}" in again.out
    assert client.states() == ["done"]


def test_secrets_are_seen_by_the_job_alone(client: Client, plane: ControlPlane) -> None:
    """No file, line or message holds a value, even if the job prints or raises it."""
    values = {
        "WANDB_API_KEY": "canary-of-the-environment",
        "FROM_DOTENV": "canary-of-dotenv",
        "HF_TOKEN": "canary-of-modal",
    }
    (client.folder / ".env").write_text(f"FROM_DOTENV={values['FROM_DOTENV']}\n")
    plane.add_secret("art-secrets", {"HF_TOKEN": values["HF_TOKEN"]})
    launched = client.launch(
        "do=leak_secrets,fail_with_secrets",
        "text=${oc.env:WANDB_API_KEY}",
        *settings(
            secrets__environment=["WANDB_API_KEY"],
            secrets__modal=["art-secrets"],
            secrets__names=["FROM_DOTENV"],
        ),
        variables={"WANDB_API_KEY": values["WANDB_API_KEY"]},
        code=1,
    )
    first, second = client.results()
    lengths = [len(value) for value in values.values()]
    assert first["value"] == [*lengths, lengths[0]]
    assert json.loads((client.job(1) / "lengths").read_text()) == lengths
    names = " or ".join(f"[{name}]" for name in values)
    assert second["failure"]["line"] == f"ValueError: could not log in with {names}"
    assert "printed: [FROM_DOTENV]" in launched.out

    (client.folder / ".env").unlink()
    files = [path for path in client.folder.rglob("*") if path.is_file()]
    texts = {str(path): path.read_bytes() for path in files}
    texts |= {f"{kind} {n}": content for n, (kind, content) in enumerate(plane.received())}
    assert len(files) > 20 and {"volume", "log", "file", "FunctionMap"} <= {
        name.partition(" ")[0] for name in texts
    }
    assert [name for name, content in texts.items() if b"canary-of-" in content] == []
