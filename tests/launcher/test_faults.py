"""Faults on Modal: jobs that fail, machines that go away, launches that are refused."""

from __future__ import annotations

import re

import pytest
from grpclib import Status

from tests.fakes.control_plane import ControlPlane
from tests.support.launching import Client, json_lines, settings, wait_for

pytestmark = pytest.mark.slow


def test_each_failure_says_what_to_change_and_only_some_are_retried(
    client: Client, plane: ControlPlane
) -> None:
    kinds = {
        "train": ("done", 1, ""),
        "fail": ("user_code", 1, "ValueError: no such luck with x=0"),
        "lack_memory": ("out_of_memory", 1, "take a GPU with more memory (gpu)"),
        "lack_package": ("import_error", 1, "hydra.launcher.image.pip"),
        "leave": ("user_code", 1, "sys.exit(3)"),
        "leave_well": ("done", 1, ""),
        "draw_a_bar": ("done", 1, ""),
        "fail_unpicklably": ("user_code", 1, "Unpicklable: cannot be sent"),
        "flaky": ("done", 2, ""),
        "vanish": ("crash", 2, "status 7"),
    }
    launched = client.launch(f"do={','.join(kinds)}", *settings(retries=1, max_parallel=3), code=1)
    assert "6 of 10 jobs did not finish" in launched.err
    for num, (result, (kind, attempts, words)) in enumerate(
        zip(client.results(), kinds.values(), strict=True)
    ):
        assert result.get("failure", {}).get("kind", result["state"]) == kind, launched.out
        assert result["attempts"] == attempts == len(plane.call(client.call(num)).attempts)
        error = client.job(num) / "error.txt"
        assert error.exists() == (kind != "done")
        if kind != "done":
            (line,) = re.findall(rf"^\[{num}\] (.*\(traceback: .*\))$", launched.out, re.M)
            assert words in line and f"(traceback: {error})" in line
    trace = (client.job(1) / "error.txt").read_text()
    assert trace.startswith("Traceback") and "in fail\n" in trace
    assert (client.job(6) / "log.txt").read_text() == "0 %\n100 %\n"
    assert "about to vanish" in (client.job(9) / "error.txt").read_text()
    assert len(re.findall(r"^ +\d +(?:failed|done) ", launched.out, re.M)) == 10


def test_a_job_whose_container_is_lost_continues_from_its_checkpoint(
    client: Client, plane: ControlPlane
) -> None:
    """Such attempts are not counted as failures, unless nothing new was saved in them."""
    launched = client.start(
        "do=train,stuck", "x=1,2", "steps=12", "seconds=0.2", *settings(retries=0)
    )
    preempted, crashed, stuck = (client.call(num) for num in range(3))
    client.wait_step(3, 0)
    plane.preempt(preempted)
    client.wait_step(3, 1)
    plane.crash(crashed)
    wait_for(lambda: "stuck" in plane.call(stuck).log)
    plane.crash(stuck)
    client.runs("runs", "cancel", "toy", "3")
    launched.to_end(code=1)

    first, second, third, fourth = client.results()
    assert [first["state"], second["state"], fourth["state"]] == ["done", "done", "cancelled"]
    assert (third["failure"]["kind"], third["attempts"]) == ("crash", 2)
    assert "lost with nothing new saved (1 in a row)" in launched.out
    for num, ending in ((0, "preempted"), (1, "crashed")):
        attempts = [attempt.ending for attempt in plane.call(client.call(num)).attempts]
        assert attempts == [ending, "success"]
        begun = re.findall(r"from step (\d+)", (client.job(num) / "log.txt").read_text())
        assert begun[0] == "0" and 3 <= int(begun[1]) < 12
        steps = [line["step"] for line in json_lines(client.job(num) / "metrics.jsonl")]
        assert steps == list(range(1, 13))
        assert client.results()[num]["attempts"] == 2
        assert f"[{num}] running (attempt 2)" in launched.out
    assert first["seconds"] > 12 * 0.2


def test_a_job_that_runs_out_of_time_continues_in_the_next_attempt(
    client: Client, plane: ControlPlane
) -> None:
    """It is asked to stop in time; one that does not answer times out."""
    deaf = client.start("do=stuck", "name=deaf", *settings(timeout=5, retries=0))
    launched = client.start("steps=40", "seconds=0.1", *settings(timeout=5, retries=2))
    launched.to_end()
    deaf.to_end(code=1)
    (result,) = client.results()
    assert 2 <= result["attempts"] <= 3
    begun = [int(n) for n in re.findall(r"from step (\d+)", (client.job() / "log.txt").read_text())]
    assert begun[0] == 0 < begun[1] < 40
    steps = [line["step"] for line in json_lines(client.job() / "metrics.jsonl")]
    assert steps == list(range(1, 41))
    assert "asked to stop at step" in launched.out
    assert [a.ending for a in plane.call(client.call()).attempts][-2:] == ["failure", "success"]

    (result,) = client.results(run="deaf")
    assert result["failure"]["kind"] == "timeout"
    assert "raise hydra.launcher.timeout or hydra.launcher.retries" in deaf.out


REFUSED = {
    "image": ("hydra.launcher.image", "pip gave up"),
    "secret": ("hydra.launcher.secrets.modal", "nowhere"),
    "gpu": ("gpu: H1000 is not a valid GPU",),
    "token": ("modal token new", "Token missing"),
    "service": ("cannot be reached", "down"),
    "spawn": ("cannot be reached", "down"),
    "account": ("modal token new", "gpu=local"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_refused_launch_is_one_line_and_leaves_nothing_behind(
    client: Client, plane: ControlPlane, what: str
) -> None:
    overrides: list[str] = []
    variables: dict[str, str] = {}
    if what == "image":
        plane.break_images(containing="trl==", message="pip gave up")
        overrides = settings(image__pip=["trl==9"])
    elif what == "secret":
        overrides = settings(secrets__modal=["nowhere"])
    elif what == "gpu":
        overrides = ["gpu=H1000"]
    elif what == "token":
        plane.refuse("AppCreate", Status.UNAUTHENTICATED, "Token missing", times=9)
    elif what == "service":
        plane.refuse("AppCreate", Status.UNAVAILABLE, "down", times=9)
    elif what == "spawn":
        plane.refuse("FunctionMap", Status.UNAVAILABLE, "down", times=99)
    else:
        variables = {"MODAL_TOKEN_ID": "", "MODAL_TOKEN_SECRET": "", "HOME": str(client.folder)}
    refused = client.launch(*overrides, code=1, variables=variables)
    for words in REFUSED[what]:
        assert words in refused.line
    assert plane.state.deployed("toy-me-toy") is None and plane.containers == 0
    assert not (client.folder / "runs").exists()


def test_running_jobs_are_not_given_up_while_the_service_is_away(
    client: Client, plane: ControlPlane
) -> None:
    """Their output and files come later; no new job starts meanwhile."""
    other = client.start("name=other", variables={"MODAL_SERVER_URL": "http://127.0.0.1:9"})
    launched = client.start("x=1,2", "steps=10", "seconds=0.2")
    launched.wait("[1] step 3")
    for rpc, times in (("FunctionGetOutputs", 12), ("AppGetLogs", 12), ("VolumeListFiles", 3)):
        plane.refuse(rpc, Status.UNAVAILABLE, "down", times=times)
    launched.to_end()
    assert client.states() == ["done", "done"]
    for num in range(2):
        seen = [line for line in launched.out.splitlines() if f"[{num}] step" in line]
        assert seen == [f"[{num}] step {step}" for step in range(1, 11)]
        assert len(json_lines(client.job(num) / "metrics.jsonl")) == 10

    other.to_end(code=1)
    assert "cannot be reached" in other.line
    assert not client.job(run="other").exists() and len(plane.apps) == 1
