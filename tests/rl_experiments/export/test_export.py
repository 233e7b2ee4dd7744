"""Checkpoints as plain models: what they compute, what their card says, where they go."""

from __future__ import annotations

import json
import re
import resource
import shutil
import threading
from base64 import b64decode
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from rl_experiments.checkpoints.manifest import finalize
from rl_experiments.checkpoints.store import CheckpointStore
from rl_experiments.commands.export import export
from rl_experiments.errors import UserError
from rl_experiments.inference.vllm_colocated import merged_weights
from tests.support.faults import FaultProxy
from tests.support.program import SMALL, Program
from tests.support.stores import bucket_of, moto, proxy, surroundings

__all__ = ["moto", "proxy", "surroundings"]  # fixtures

LORA = [
    *SMALL,
    "num_examples=4",
    "model.scratch.warmup_steps=5",
    "trainer.learning_rate=0.05",
    "model.lora.enabled=true",
]
FILES = {"config.json", "generation_config.json", "model.safetensors", "README.md"}
FILES |= {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
PROMPT = [{"role": "system", "content": "win"}, {"role": "user", "content": "2 4\n. .\n"}]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, run_in: Program) -> Path:
    """A folder with runs/lora, whose base is in the cache."""
    cwd = tmp_path_factory.mktemp("trained")
    run_in(cwd, *LORA, "name=lora").check_returncode()
    return cwd


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run's folder, from where its name is enough."""
    shutil.copytree(trained / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "runs/lora/0"


def change(checkpoint: Path, **changes: Any) -> Path:
    """Seal the checkpoint anew, with other settings (`a__b` for a.b) of its run."""
    file = checkpoint / "run/config.yaml"
    cfg = OmegaConf.load(file)
    for name, value in changes.items():
        OmegaConf.update(cfg, name.replace("__", "."), value)
    OmegaConf.save(cfg, file)
    return finalize(checkpoint.parent, step=int(checkpoint.name.rpartition("-")[2]))


def whole(run: Path) -> Path:
    """The checkpoint of a run that trained all weights."""
    base = json.loads((run / "checkpoints/checkpoint-4/adapter_config.json").read_text())
    folder = run.parents[1] / "whole/0/checkpoints/checkpoint-4"
    model = AutoModelForCausalLM.from_pretrained(base["base_model_name_or_path"])
    model.config.use_cache = False  # as training may leave it
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(run / "checkpoints/checkpoint-4").save_pretrained(folder)
    shutil.copytree(run / "checkpoints/checkpoint-4/run", folder / "run")
    return change(folder, model__lora__enabled=False)


def answers(folder: Path, **options: Any) -> tuple[torch.Tensor, list[int]]:
    """The logits after a prompt, and the greedy reply to it."""
    model = AutoModelForCausalLM.from_pretrained(folder, **options)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = tokenizer.apply_chat_template(PROMPT, add_generation_prompt=True, return_tensors="pt")
    with torch.no_grad():
        reply = model.generate(**chat, do_sample=False, max_new_tokens=16)
        return model(**chat).logits, reply[0].tolist()


def card(folder: Path) -> tuple[dict[str, Any], str]:
    """Its metadata, and its text."""
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), text


def test_an_adapter_and_its_base_become_one_model(
    run: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = run / "checkpoints/checkpoint-4"
    base = Path(
        json.loads((checkpoint / "adapter_config.json").read_text())["base_model_name_or_path"]
    )
    logits, reply = answers(checkpoint)
    export(["lora", "--to", "models/one"])
    said = capsys.readouterr().out
    assert re.fullmatch(
        rf"runs/lora/0/checkpoints/checkpoint-4 is in {tmp_path}/models/one \(0\.\d MB\)\n", said
    )
    folder = tmp_path / "models/one"
    assert {path.name for path in folder.iterdir()} == FILES
    assert [path.name for path in folder.parent.iterdir()] == ["one"]
    before, _ = answers(base)
    hidden = base.rename(base.with_name("hidden"))
    try:
        after, again = answers(folder)
    finally:
        hidden.rename(base)
    assert torch.allclose(after, logits, atol=1e-4) and again == reply
    assert (after - before).abs().max() > 0.1
    # Nothing of this machine is told.
    for path in folder.iterdir():
        assert not re.search(rb"/tmp|scratch/|/0/", path.read_bytes()), path


def test_all_weights_are_exported_as_they_are(run: Path, tmp_path: Path) -> None:
    checkpoint = whole(run)
    export([str(checkpoint), f"--to={tmp_path / 'out'}"])
    assert (answers(tmp_path / "out")[0] == answers(checkpoint)[0]).all()
    assert json.loads((tmp_path / "out/config.json").read_text())["use_cache"] is True


def test_bf16_weights_are_rounded_once(run: Path, tmp_path: Path) -> None:
    checkpoint = change(run / "checkpoints/checkpoint-4", model__dtype="bfloat16")
    # As in training: a base in bf16, an adapter in fp32; vLLM plays the sum.
    adapter = json.loads((checkpoint / "adapter_config.json").read_text())
    base = AutoModelForCausalLM.from_pretrained(
        adapter["base_model_name_or_path"], dtype="bfloat16"
    )
    wanted = dict(merged_weights(PeftModel.from_pretrained(base, checkpoint)))
    export(["lora", "--to", "out"])
    found = load_file("out/model.safetensors")
    assert found and all(torch.equal(found[name], wanted[name]) for name in found)
    assert {weight.dtype for weight in found.values()} == {torch.bfloat16}


def test_the_model_replies_as_it_was_evaluated(run: Path) -> None:
    checkpoint = change(whole(run), trainer__temperature=0.7)
    settings = json.loads((checkpoint / "generation_config.json").read_text())
    settings |= {"do_sample": True, "top_k": 3, "repetition_penalty": 9.0}
    (checkpoint / "generation_config.json").write_text(json.dumps(settings))
    finalize(checkpoint.parent, step=4)
    export([str(checkpoint), "--to", "out"])
    told = json.loads(Path("out/generation_config.json").read_text())
    kept = {key: told[key] for key in ("temperature", "top_k", "top_p", "do_sample")}
    assert kept == {"temperature": 0.7, "top_k": 0, "top_p": 1.0, "do_sample": True}
    assert "repetition_penalty" not in told and told["eos_token_id"] == settings["eos_token_id"]


def test_the_card_tells_what_the_run_knows(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    export(["lora", "--to", "out"])
    front, text = card(Path("out"))
    tags = ["reinforcement-learning", "grpo", "trl", "game2048"]
    assert front == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": tags,
    }
    assert "# lora, step 4\n" in text and "a model made at random" in text
    evaluation = json.loads((run / "evaluation.json").read_text())
    for row in evaluation["policies"]:
        name = {"after": "**after: this model**", "before": "before (step 0)"}.get(row["policy"])
        cells = [
            f"{row[k]['value']:.3f} ({row[k]['low']:.3f} to {row[k]['high']:.3f})"
            for k in ("win_rate", "reward")
        ]
        assert f"| {name or row['policy']} | 4 | {cells[0]} | {cells[1]} |\n" in text
    assert "| after - before | paired |" in text
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert f"step 4, reward {last['reward']:.4g}, win_rate {last['win_rate']:.4g}." in text
    record = json.loads((run / "run.json").read_text())
    assert (record["git"] or {"commit": "unknown"})["commit"] in text
    assert f"trl {record['packages']['trl']}" in text
    settings = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    whole_config = yaml.safe_load((run / "config.yaml").read_text())
    for group in ("trainer", "env", "reward", "seed"):
        assert settings[group] == whole_config[group]
    # Its four lines of Python work where the card lies.
    monkeypatch.chdir("out")
    code = text.split("```python\n")[1].split("```")[0]
    exec(code, {"MESSAGES": PROMPT})
    assert "assistant" in capfd.readouterr().out


def test_an_evaluation_of_another_step_is_called_so(run: Path) -> None:
    export(["runs/lora/0/checkpoints/checkpoint-2", "--to", "out"])
    _, text = card(Path("out"))
    assert "This checkpoint has not been evaluated itself." in text
    assert "| after (step 4) | 4 |" in text and "this model" not in text
    assert "# lora, step 2\n" in text and "Last metrics: step 2, " in text


def test_the_card_names_the_base_and_no_secrets(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "a-value-of-it")
    extra = {"hub_token": "hf_abc", "note": "${oc.env:SOME_TOKEN}", "other": "a-value-of-it"}
    checkpoint = change(
        whole(run),
        model__path="Qwen/Qwen2.5-3B-Instruct",
        model__scratch=None,
        model__license="qwen-research",
        trainer__extra=extra,
        env__words="/home/me/words.txt",
    )
    export([str(checkpoint), "--to", "out"])
    front, text = card(Path("out"))
    assert front["base_model"] == "Qwen/Qwen2.5-3B-Instruct"
    assert (front["license"], front["license_name"]) == ("other", "qwen-research")
    assert "hub_token: left out" in text and "note: ${oc.env:SOME_TOKEN}" in text
    assert "other: [SOME_TOKEN]" in text
    assert "words: words.txt" in text and "Tasks come from data: words `words.txt`." in text
    assert not re.search("hf_abc|a-value-of|/home/me|(?m:^ *checkpoint:|^ *budget:)", text)
    assert "came without its run's evaluation" in text


def test_from_a_store_to_s3_the_config_goes_last(
    run: Path, proxy: FaultProxy, tmp_path: Path
) -> None:
    source = CheckpointStore.open("s3://bucket/runs", project="p", name="lora-0", setting="store")
    source.push(run / "checkpoints/checkpoint-4")
    proxy.rate, proxy.slow_seconds = 0.2, 0.05
    proxy.requests.clear()
    export(["s3://bucket/runs/p/models/lora-0", "--to", "s3://bucket/out/one"])
    assert proxy.faults
    proxy.rate = 0.0
    sent = [path for path in proxy.puts() if "/.probe" not in path]
    first = min(
        i
        for i, path in enumerate(sent)
        if path.endswith("config.json") and "_" not in path.rpartition("/")[2]
    )
    assert {path.rpartition("/")[2] for path in sent[:first]} == FILES - {"config.json"}
    bucket, there = bucket_of(proxy.url), tmp_path / "fetched"
    there.mkdir()
    for found in bucket.objects.filter(Prefix="out/"):
        bucket.download_file(found.key, str(there / found.key.removeprefix("out/one/")))
    assert {path.name for path in there.iterdir()} == FILES
    wanted, _ = answers(run / "checkpoints/checkpoint-4")
    assert torch.allclose(answers(there)[0], wanted, atol=1e-4)
    assert "came without its run's evaluation" in card(there)[1]
    with pytest.raises(UserError, match=r"^--to=s3://bucket/out: there is something already; "):
        export(["lora", "--to", "s3://bucket/out"])


def test_nothing_stays_on_s3_where_it_breaks_off(run: Path, proxy: FaultProxy) -> None:
    def fail(method: str, path: str) -> None:
        if method == "PUT" and "model.safetensors" in path:
            proxy.refuses["PUT"] = "AccessDenied"

    proxy.before = fail
    with pytest.raises(UserError, match=r"^--to=s3://bucket/out: these credentials may not "):
        export(["lora", "--to", "s3://bucket/out"])
    assert "README.md" in " ".join(proxy.puts())
    assert list(bucket_of(proxy.url).objects.all()) == []


def test_a_full_disk_leaves_nothing(run: Path, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UserError, match=r"^--to=new/out: .*[Ff]ile too large"):
            export(["lora", "--to", "new/out"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "new").iterdir()) == []


def test_mistakes_are_one_line(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    (run / "checkpoints/checkpoint-2/adapter_model.safetensors").write_bytes(b"torn")
    unsealed = shutil.copytree(run / "checkpoints/checkpoint-4", tmp_path / "unsealed")
    (unsealed / "manifest.json").unlink()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    torn = "runs/lora/0/checkpoints/checkpoint-2"
    places = "FOLDER, s3://bucket/prefix or hub:OWNER/NAME"
    for words, said in (
        (["lora"], f"--to is missing: export CHECKPOINT --to {places}"),
        (["lora", "--to"], f"--to is missing: export CHECKPOINT --to {places}"),
        (["--to", "x"], "export takes one checkpoint: export CHECKPOINT --to x"),
        (["lora", "two", "--to", "x"], "export takes one checkpoint: export CHECKPOINT --to x"),
        (["lora", "--to", "gs://x/y"], f"--to=gs://x/y: give {places}"),
        (["lora", "--to="], f"--to=: give {places}"),
        (["lora", "--to", "full"], "--to=full: there is something already; give a new folder"),
        (
            ["lora", "--to", "full/file"],
            "--to=full/file: there is something already; give a new folder",
        ),
        (["lora", "--to", "full/file/x"], f"--to=full/file/x: File exists ({tmp_path}/full/file)"),
        (["nobody", "--to", "x"], "checkpoint=nobody: no such folder"),
        (["full", "--to", "x"], "checkpoint=full: this folder holds no checkpoint"),
        (
            [torn, "--to", "x"],
            f"checkpoint={torn}: it is damaged, or was changed since it was written; take another",
        ),
        (["unsealed", "--to", "x"], "unsealed: no whole checkpoint of a run; take another"),
        (["lora", "--to", "hub:name"], "--to=hub:name: give hub:OWNER/NAME"),
        (
            ["lora", "--to", "hub:me/name"],
            "--to=hub:me/name: HF_TOKEN is not set; set a token that may write there",
        ),
    ):
        with pytest.raises(UserError) as refused:
            export(words)
        assert str(refused.value) == said
    assert not (tmp_path / "x").exists()


def test_the_command_line_knows_the_verb(program: Program) -> None:
    refused = program("export", "nobody", "--to=x")
    assert (refused.returncode, refused.stderr) == (1, "checkpoint=nobody: no such folder\n")


def test_a_base_that_is_gone_is_named(run: Path) -> None:
    file = run / "checkpoints/checkpoint-4/adapter_config.json"
    adapter = json.loads(file.read_text()) | {"base_model_name_or_path": "/nowhere/base"}
    file.write_text(json.dumps(adapter))
    finalize(run / "checkpoints", step=4)
    with pytest.raises(UserError, match=r"^lora: its base /nowhere/base is not on this machine"):
        export(["lora", "--to", "out"])


NAME = "/api/models/me/name"


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as an upload asks for; all files are sent within the commit."""

    told: ClassVar[list[tuple[str, Any]]] = []
    status = 200

    def do_GET(self) -> None:
        self.told.append((self.path, self.headers["Authorization"]))
        there = ("adapter_config.json", "notes.md")
        files = [{"type": "file", "path": name, "size": 1, "oid": "0"} for name in there]
        self._answer(files if "/tree/" in self.path else {"name": "me"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        lines = [json.loads(line) for line in body.splitlines()]
        self.told.append((self.path, lines))
        files = [
            {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
            for file in lines[0].get("files", [])
        ]
        url = f"http://{self.headers['Host']}/me/name"
        self._answer({"files": files, "url": url, "commitUrl": url, "commitOid": "1"})

    def log_message(self, *args: Any) -> None:
        pass

    def _answer(self, what: Any) -> None:
        text = json.dumps(what).encode()
        self.send_response(self.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    Hub.told, Hub.status = [], 200
    monkeypatch.setattr(
        "huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}"
    )
    monkeypatch.setenv("HF_TOKEN", "hf_the-token")
    yield Hub
    server.shutdown()
    server.server_close()


def test_to_the_hub_goes_what_a_folder_would_hold(
    run: Path, hub: type[Hub], capsys: pytest.CaptureFixture[str]
) -> None:
    export(["lora", "--to", "hub:me/name"])
    assert "/me/name, private if it is new, (" in capsys.readouterr().out
    assert hub.told[0] == ("/api/whoami-v2", "Bearer hf_the-token")
    sent = {path.partition("?")[0]: lines for path, lines in hub.told[1:]}
    assert sent["/api/repos/create"][0]["visibility"] == "private"
    commit = [line["value"] | {"key": line["key"]} for line in sent[f"{NAME}/commit/main"]]
    files = {line["path"]: line["content"] for line in commit if line["key"] == "file"}
    assert files.keys() == FILES
    assert json.loads(b64decode(files["config.json"]))["model_type"] == "qwen3"
    assert 'from_pretrained("me/name")' in b64decode(files["README.md"]).decode()
    # What would be loaded as well goes; what is no model stays.
    gone = [line["path"] for line in commit if line["key"] == "deletedFile"]
    assert gone == ["adapter_config.json"]


def test_a_hub_that_refuses_or_is_not_there_is_one_line(
    run: Path, hub: type[Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.status = 401
    with pytest.raises(
        UserError, match=r"^--to=hub:me/name: the hub says 401; see what HF_TOKEN permits$"
    ):
        export(["lora", "--to", "hub:me/name"])
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"^--to=hub:me/name: the hub does not answer; connect, "):
        export(["lora", "--to", "hub:me/name"])
