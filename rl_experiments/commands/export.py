"""A checkpoint as a plain transformers model with its card: in a folder, on S3, or on the hub."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hydra_modal_jobs.secrets import Secrets
from omegaconf import OmegaConf

from rl_experiments.checkpoints.manifest import CorruptCheckpoint, Manifest
from rl_experiments.checkpoints.resolve import resolve
from rl_experiments.errors import UserError, one_line
from rl_experiments.export.card import HUB_NAME, card
from rl_experiments.paths import (
    ADAPTER_CONFIG_FILE,
    CONFIG_FILE,
    MODEL_CONFIG_FILE,
    RECORDS_FOLDER,
    RUNS,
)
from rl_experiments.storage.objects import ObjectStore

_PLACES = "FOLDER, s3://bucket/prefix or hub:OWNER/NAME"
_STALE = ["*.safetensors", "*.bin", "*.index.json", "adapter_*"]  # of another model on the hub
_OFFLINE = "the hub does not answer; connect, and unset HF_HUB_OFFLINE"

Send = Callable[[Path], str]  # moves the built folder to its place; says where that is


def export(words: Sequence[str]) -> None:
    """The `export` verb: `CHECKPOINT --to PLACE`."""
    named, to = _arguments(words)
    send, beside = _place(to)  # before the work, which takes long for a large model
    source = _find(named)
    try:
        step, cfg = (
            Manifest.read(source).step,
            OmegaConf.load(source / RECORDS_FOLDER / CONFIG_FILE),
        )
    except (OSError, CorruptCheckpoint):
        raise UserError(f"{named}: no whole checkpoint of a run; take another") from None
    with _told(to), tempfile.TemporaryDirectory(prefix=".export-", dir=beside) as building:
        folder = Path(building) / "model"  # the one around it is for its owner alone
        folder.mkdir()
        base = _save_model(named, source, folder, cfg)
        name = to.removeprefix("hub:") if to.startswith("hub:") else "."
        text = card(source, step, cfg, base=base, name=name)
        (folder / "README.md").write_text(Secrets.here().redact(text))
        size = sum(path.stat().st_size for path in folder.iterdir())
        print(f"{source} is in {send(folder)} ({size / 1e6:,.1f} MB)")


def _arguments(words: Sequence[str]) -> tuple[str, str]:
    words = [part for word in words for part in re.split(r"(?<=^--to)=", word)]
    if "--to" not in words[:-1]:
        raise UserError(f"--to is missing: export CHECKPOINT --to {_PLACES}")
    at = words.index("--to")
    named = [*words[:at], *words[at + 2 :]]
    if len(named) != 1 or named[0].startswith("-"):
        raise UserError(f"export takes one checkpoint: export CHECKPOINT --to {words[at + 1]}")
    return named[0], words[at + 1]


def _find(named: str) -> Path:
    return resolve(str(RUNS / named) if (RUNS / named).is_dir() else named)


def _place(to: str) -> tuple[Send, Path | None]:
    """How to put a folder there, and where to build it. Refuses what would fail later."""
    if to.startswith("s3://"):
        return _on_s3(to), None
    if to.startswith("hub:"):
        return _on_hub(to), None
    if not to or ":" in to:
        raise UserError(f"--to={to}: give {_PLACES}")
    folder = Path(to).expanduser().absolute()
    with _told(to):
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise UserError(f"--to={to}: there is something already; give a new folder")
        folder.parent.mkdir(parents=True, exist_ok=True)
    return lambda built: str(built.rename(folder)), folder.parent


def _on_s3(to: str) -> Send:
    objects = ObjectStore.open(to, "", writes=True, setting="--to", patience_seconds=15.0)
    with objects.as_user_error():
        if objects.list():
            raise UserError(f"--to={to}: there is something already; give an empty place")

    def send(built: Path) -> str:
        # The config last: nothing can be loaded without it.
        files = sorted(
            built.iterdir(), key=lambda path: (path.name == MODEL_CONFIG_FILE, path.name)
        )
        try:
            with objects.as_user_error():
                for path in files:
                    objects.put(path, path.name)
        except BaseException:
            objects.patience_seconds = 1.0
            with suppress(Exception):
                for path in files:
                    objects.remove(path.name)
            raise
        return to

    return send


def _on_hub(to: str) -> Send:
    from huggingface_hub import HfApi

    name, token = to.removeprefix("hub:"), os.environ.get("HF_TOKEN", "").strip()
    if not re.fullmatch(HUB_NAME, name):
        raise UserError(f"--to={to}: give hub:OWNER/NAME")
    if not token:
        raise UserError(f"--to={to}: HF_TOKEN is not set; set a token that may write there")
    api = HfApi(token=token)
    with _told(to):
        api.whoami()

    def send(built: Path) -> str:
        api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=built, delete_patterns=_STALE)
        return f"{api.endpoint}/{name}, private if it is new,"

    return send


@contextmanager
def _told(to: str) -> Iterator[None]:
    """What the disk or the hub says becomes one line."""
    from httpx import HTTPError
    from safetensors import SafetensorError

    try:
        yield
    except (HTTPError, OSError, SafetensorError) as error:
        reason = one_line(str(error))
        if isinstance(error, OSError) and error.strerror:
            reason = f"{error.strerror} ({error.filename})"
        if isinstance(error, HTTPError | ConnectionError):
            answer, reason = getattr(error, "response", None), _OFFLINE
            if answer is not None:
                reason = f"the hub says {answer.status_code}; see what HF_TOKEN permits"
        raise UserError(f"--to={to}: {reason}") from error


def _save_model(named: str, source: Path, folder: Path, cfg: Any) -> str | None:
    """The whole model with its tokenizer. Returns the base that an adapter was merged into.

    They are added in fp32 and rounded once, to the type the base was played in: as vLLM has them.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    adapter, base = source / ADAPTER_CONFIG_FILE, None
    if adapter.exists():
        base = str(json.loads(adapter.read_text())["base_model_name_or_path"])
        if Path(base).is_absolute() and not Path(base).is_dir():
            raise UserError(f"{named}: its base {base} is not on this machine; export where it is")
    dtype = cfg.model.dtype if base else "auto"
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModelForCausalLM.from_pretrained(base or source, dtype=dtype)
    except (OSError, ValueError) as error:
        reason = one_line(str(error))[:300]
        raise UserError(f"{named}: {base or 'it'} cannot be loaded: {reason}") from None
    if base:
        # peft has adapters in fp32, as they were trained: added so, the sum is rounded once.
        model = PeftModel.from_pretrained(model, source).merge_and_unload()
    model.config.use_cache = True  # training may have turned it off
    # A base's own settings may draw from fewer tokens, and lower those that came before.
    known = model.generation_config
    ids = {f"{kind}_token_id": getattr(known, f"{kind}_token_id") for kind in ("eos", "pad", "bos")}
    heat = cfg.evaluation.temperature
    heat = cfg.trainer.temperature if heat is None else heat
    drawn = {"temperature": heat, "top_k": 0, "top_p": 1.0} if heat else {}
    model.generation_config = GenerationConfig(do_sample=bool(heat), **drawn, **ids)
    model.save_pretrained(folder, max_shard_size="5GB")
    tokenizer.save_pretrained(folder)
    return base
