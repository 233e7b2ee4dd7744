"""The `export` verb: a checkpoint as a plain transformers model with a model card."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from hydra_modal_jobs import Secrets
from omegaconf import OmegaConf

from rl_experiments.checkpoints.manifest import CorruptCheckpoint, Manifest
from rl_experiments.checkpoints.resolve import resolve
from rl_experiments.errors import UserError
from rl_experiments.export.card import model_card
from rl_experiments.export.destinations import (
    DESTINATIONS,
    building_folder,
    errors_as_one_line,
    open_destination,
    remove_abandoned,
)
from rl_experiments.export.model import save_model
from rl_experiments.paths import CONFIG_FILE, RECORDS_FOLDER, RUNS
from rl_experiments.terminal.text import print_line


def export(words: Sequence[str]) -> None:
    """Export a checkpoint: `export CHECKPOINT --to DESTINATION`."""
    label, to = _parse(words)
    destination = open_destination(to)  # first, because building a large model takes long
    checkpoint = _find_checkpoint(label)
    try:
        step = Manifest.read(checkpoint).step
        cfg = OmegaConf.load(checkpoint / RECORDS_FOLDER / CONFIG_FILE)
    except (OSError, CorruptCheckpoint):
        raise UserError(f"{label}: not a complete checkpoint of a run; take another") from None
    remove_abandoned(destination.build_in or Path(tempfile.gettempdir()))
    with errors_as_one_line(to), building_folder(destination.build_in) as building:
        folder = building / "model"  # the temporary folder itself only its owner may read
        folder.mkdir()
        base = save_model(checkpoint, folder, cfg, label=label)
        card = model_card(checkpoint, step, cfg, base=base, name=destination.model_name)
        (folder / "README.md").write_text(Secrets.from_environment().redact(card))
        size_bytes = sum(path.stat().st_size for path in folder.iterdir())
        place = destination.send(folder)
        print_line(f"{checkpoint} is in {place} ({size_bytes / 1e6:,.1f} MB)")


def _parse(words: Sequence[str]) -> tuple[str, str]:
    """Return the checkpoint and the value of `--to`, which may also be written `--to=...`."""
    parts = [part for word in words for part in re.split(r"(?<=^--to)=", word)]
    if "--to" not in parts[:-1]:
        raise UserError(f"--to is missing: export CHECKPOINT --to {DESTINATIONS}")
    position = parts.index("--to")
    to = parts[position + 1]
    others = [*parts[:position], *parts[position + 2 :]]
    if len(others) != 1 or others[0].startswith("-"):
        raise UserError(f"export takes one checkpoint: export CHECKPOINT --to {to}")
    return others[0], to


def _find_checkpoint(label: str) -> Path:
    """Return the folder of a checkpoint that is named by its run, its path or its address."""
    return resolve(str(RUNS / label) if (RUNS / label).is_dir() else label)
