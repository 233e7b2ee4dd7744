"""Jobs on this machine: what they print, Ctrl-C, results, and the backend `debug`."""

from __future__ import annotations

import fcntl
import json
import os
import re
import struct
import termios

import pytest

from tests.support.launching import Client, json_lines, settings, wait_for

pytestmark = pytest.mark.slow

BACKENDS = pytest.mark.parametrize("backend", ["local", "debug"])


@BACKENDS
def test_a_job_prints_to_the_terminal_itself(client: Client, backend: str) -> None:
    launched = client.launch("gpu=local", "x=7", *settings(backend=backend))
    plan, _, printed = launched.out.partition("from step 0\n")
    assert "overrides" in plan
    assert printed.startswith("step 1\nstep 2\nstep 3\n")
    assert re.search(r"^ +0 +done +7 ", printed, re.M)
    assert launched.err == ""
    (result,) = client.results()
    assert (result["state"], result["value"], result["attempts"]) == ("done", 7.0, 1)


def test_a_job_has_a_process_of_its_own_unless_it_is_debugged(client: Client) -> None:
    local = client.launch("gpu=local", "name=local")
    debugged = client.launch("gpu=local", "name=debugged", *settings(backend="debug"))
    pids = [
        json_lines(client.job(run=run) / "metrics.jsonl")[0]["pid"] for run in ("local", "debugged")
    ]
    assert pids[0] != local.process.pid
    assert pids[1] == debugged.process.pid


@BACKENDS
def test_a_failed_job_ends_in_one_line_with_its_traceback_in_a_file(
    client: Client, backend: str
) -> None:
    failed = client.launch("gpu=local", "do=fail", *settings(backend=backend), code=1)
    assert "ValueError: no such luck with x=0" in failed.err
    assert f"(traceback: {client.job()}/error.txt)" in failed.err
    assert "Traceback" not in failed.out + failed.err
    assert "in fail\n" in (client.job() / "error.txt").read_text()
    assert client.results()[0]["failure"]["kind"] == "user_code"


def test_a_local_job_that_one_watches_is_not_tried_again(client: Client) -> None:
    client.launch("gpu=local", "do=flaky", code=1)
    assert client.results()[0]["failure"]["kind"] == "transient"
    client.launch("gpu=local", "do=flaky,train", "name=two", *settings(max_parallel=2))
    assert [result["attempts"] for result in client.results(run="two")] == [2, 1]


def test_a_job_whose_process_is_lost_fails_with_its_status(client: Client) -> None:
    lost = client.launch("gpu=local", "do=vanish", code=1)
    assert "its process ended with status 7 and no result" in lost.err


@BACKENDS
def test_ctrl_c_ends_in_the_jobs_own_line_and_resume_continues(
    client: Client, backend: str
) -> None:
    launched = client.start("gpu=local", "steps=40", "seconds=0.1", *settings(backend=backend))
    launched.wait("step 3\n")
    launched.interrupt()
    launched.to_end(code=130)
    assert re.fullmatch(r"interrupted at step \d+", launched.line)
    saved = max(int(path.name) for path in (client.job() / "checkpoints").iterdir())

    resumed = client.runs("resume", "toy")
    assert f"from step {saved}\n" in resumed.out
    assert client.states() == ["done"]
    assert client.results()[0]["attempts"] == 1


def test_ctrl_c_keeps_the_results_of_earlier_jobs_and_begins_no_later_one(client: Client) -> None:
    launched = client.start("gpu=local", "x=1,2,3", "steps=40", "seconds=0,0.1")
    launched.wait("step 40\n")
    launched.wait("step 2\n", 2)
    launched.interrupt()
    launched.to_end(code=130)
    assert re.search(r"^ +0 +done +1 ", launched.out, re.M)
    assert client.states()[0] == "done" and "done" not in client.states()[1:]
    assert not (client.job(2) / "metrics.jsonl").exists()


def test_ctrl_c_before_the_task_has_begun_is_one_line_too(client: Client) -> None:
    launched = client.start("gpu=local", "do=stuck")
    attempts = client.job() / ".job/attempts.jsonl"
    wait_for(attempts.exists)
    launched.interrupt()
    launched.to_end(code=130)
    assert "resume toy" in launched.line or "interrupted" in launched.line


def test_a_second_ctrl_c_kills_a_job_that_does_not_answer(client: Client) -> None:
    launched = client.start("gpu=local", "do=stubborn", "steps=9999", "seconds=0.1")
    launched.wait("step 2\n")
    launched.interrupt()
    alive = client.job() / "metrics.jsonl"
    size = alive.stat().st_size
    wait_for(lambda: alive.stat().st_size > size)  # the first is without effect
    launched.interrupt()
    launched.to_end(code=130)
    pid = json_lines(alive)[0]["pid"]
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"))
    assert launched.line.startswith("Killed 1 job. Continue with: ")


def test_parallel_jobs_have_numbered_lines_and_logs(client: Client) -> None:
    launched = client.launch("gpu=local", "x=1,2", *settings(max_parallel=2))
    for num in range(2):
        assert f"[{num}] step 3\n" in launched.out
        assert (client.job(num) / "log.txt").read_text().endswith("step 3\n")
    assert [result["value"] for result in client.results()] == [1, 2]


def test_a_job_sees_the_width_of_the_terminal(client: Client) -> None:
    keyboard, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 77, 0, 0))
    client.variables.pop("COLUMNS")
    launched = client.start("gpu=local", "do=terminal_width", stdout=terminal)
    launched.to_end()
    os.close(terminal)
    os.close(keyboard)
    assert client.results()[0]["value"] == 77


def test_a_piped_line_stays_one_line_however_narrow_the_terminal(client: Client) -> None:
    text = " ".join(["word"] * 60)
    launched = client.launch(
        "gpu=local",
        "do=say,fail",
        f"text='{text}'",
        *settings(max_parallel=2),
        code=1,
        variables={"COLUMNS": "40"},
    )
    lines = launched.out.splitlines()
    assert f"[0] {text}" in lines
    (failure,) = [line for line in lines if "(traceback: " in line]
    assert failure.startswith("[1] ValueError") and failure.endswith("error.txt)")


def test_an_unknown_backend_is_refused_by_name(client: Client) -> None:
    refused = client.launch("gpu=local", *settings(backend="cluster"), code=1)
    assert "hydra.launcher.backend=cluster: no such backend" in refused.line
    assert "local, modal, debug" in refused.line


def test_a_backend_may_come_from_a_module_of_its_own(client: Client) -> None:
    """A new place to run jobs needs one file, which the launcher does not have to know."""
    (client.folder / "elsewhere.py").write_text(
        "from hydra_modal_jobs.backends.local import LocalBackend\n"
        "class Elsewhere(LocalBackend):\n"
        "    name = 'elsewhere'\n"
        "    title = 'elsewhere'\n"
        "    @classmethod\n"
        "    def usd_per_hour(cls, settings):\n"
        "        return 2.0, 3.0\n"
    )
    path = os.pathsep.join([client.variables["PYTHONPATH"], str(client.folder)])
    launched = client.launch(
        "gpu=X1", *settings(backend="elsewhere:Elsewhere"), variables={"PYTHONPATH": path}
    )
    assert "2.00 to 3.00" in launched.out and client.states() == ["done"]
    entry = json.loads((client.folder / "runs/toy/launch.json").read_text())["jobs"][0]
    assert entry["backend"] == "elsewhere:Elsewhere"


def test_the_files_that_later_versions_read_have_a_format_version(client: Client) -> None:
    client.launch("gpu=local")
    control = client.job() / ".job"
    files = [client.folder / "runs/toy/launch.json", control / "job.json", control / "result.json"]
    assert [json.loads(file.read_text())["format_version"] for file in files] == [1, 1, 1]
    assert {line["format_version"] for line in json_lines(control / "attempts.jsonl")} == {1}


def test_a_run_of_an_earlier_version_is_listed_and_resumed(client: Client) -> None:
    """It has manifest.json for launch.json, and no format versions or backends."""
    client.launch(
        "gpu=local", "do=fail_while_file_exists", "x=0,1", f"text={client.folder}", code=1
    )
    run = client.folder / "runs/toy"
    content = json.loads((run / "launch.json").read_text())
    (run / "launch.json").unlink()
    del content["format_version"]
    for entry in content["jobs"]:
        del entry["backend"]
    (run / "manifest.json").write_text(json.dumps(content))
    for num in range(2):
        path = client.job(num) / ".job/job.json"
        job = json.loads(path.read_text())
        del job["format_version"]
        config = job["config"].replace(str(client.folder), "gone")
        job |= {"config": config, "types": {**job["types"], "hydra.launcher": OLD_SETTINGS}}
        path.write_text(json.dumps(job))
    assert "1 done, 1 failed" in client.runs("runs").out
    assert "--trust" in client.runs("resume", "toy", code=1).line  # it has no seal
    client.runs("resume", "toy", "--trust")
    assert client.states() == ["done", "done"]


OLD_SETTINGS = "hydra_plugins.modal_launcher.config:ModalJobsConf"


def test_a_run_whose_modules_have_other_names_now_is_resumed(client: Client) -> None:
    """The application tells the launcher the former names of its modules."""
    client.launch("gpu=local", "do=fail_while_file_exists", "x=1", f"text={client.folder}", code=1)
    path = client.job() / ".job/job.json"
    job = json.loads(path.read_text())
    assert job["task"]["name"] == "toy.__main__:main"
    job["task"]["name"] = "toy.former:main"
    job["config"] = job["config"].replace(str(client.folder), "gone")
    job["config"] = job["config"].replace("check: null", "check: toy.former_checks:check")
    path.write_text(json.dumps(job))
    assert "toy.former:main: No module named" in client.runs("resume", "toy", "--trust", code=1).err

    (client.folder / "resume.py").write_text(
        "from pathlib import Path\n"
        "import hydra_modal_jobs\n"
        "former = {'toy.former': 'toy.__main__', 'toy.former_checks:check': 'builtins:len'}\n"
        "hydra_modal_jobs.resume(['toy'], root=Path('runs'), former_names=former)\n"
    )
    client.launch(program="resume.py")
    assert client.states() == ["done"]
