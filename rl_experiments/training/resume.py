"""What a resumed run loads from its checkpoint: exactly the weights that were saved there."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import (
    PeftModel,
    get_peft_model_state_dict,
    load_peft_weights,
    set_peft_model_state_dict,
)
from safetensors.torch import load_model, save_model
from torch import nn
from transformers import PreTrainedModel

from rl_experiments.errors import UserError
from rl_experiments.paths import ADAPTER_CONFIG_FILE, REFERENCE_MODEL_FILE

_FIRST_ADAPTER = "default"  # peft's name; it is saved in the folder itself, others in one of theirs


def load_weights(model: PreTrainedModel | PeftModel, checkpoint: Path) -> None:
    """Give the model the weights of a checkpoint, in place; each adapter gets its own.

    transformers would load one adapter only where a checkpoint holds several, and would pass over
    weights that the model has under another name in memory than in files.
    Raises a `UserError` if the checkpoint does not hold all weights.
    """
    if isinstance(model, PeftModel):
        for name in model.peft_config:
            if name == _FIRST_ADAPTER:
                _load_adapter(model, name, checkpoint)
            elif (checkpoint / name / ADAPTER_CONFIG_FILE).exists():
                _load_adapter(model, name, checkpoint / name)
        return
    loaded, report = type(model).from_pretrained(
        checkpoint, dtype=model.dtype, output_loading_info=True
    )
    if report["missing_keys"] or report["mismatched_keys"]:
        missing = sorted([*report["missing_keys"], *map(str, report["mismatched_keys"])])
        raise _not_whole(checkpoint, missing[0])
    model.load_state_dict(loaded.state_dict())


@contextmanager
def plain_data_only(checkpoint: str | Path | None) -> Iterator[None]:
    """Turn torch's refusal to unpickle a state file of the checkpoint into a `UserError`.

    torch reads tensors and plain values alone from these files, and runs no code that they hold.
    """
    try:
        yield
    except (pickle.UnpicklingError, EOFError) as error:
        named = re.search(r"GLOBAL\s+(\S+)", str(error))
        held = f"{named[1]}, which is code" if named else "what is no plain data, or is cut off"
        raise UserError(
            f"{checkpoint}: its optimizer, scheduler or random state holds {held}, so it was not "
            "loaded; take the checkpoint from where it was made, or another one"
        ) from None


def save_reference_model(model: nn.Module, checkpoint: Path) -> None:
    """Write the reference model of the KL term into a checkpoint, for runs in which it moves."""
    file = checkpoint / REFERENCE_MODEL_FILE
    file.parent.mkdir()
    save_model(model, str(file))


def load_reference_model(model: nn.Module, checkpoint: Path) -> None:
    """Give the reference model the weights that it had when the checkpoint was saved."""
    file = checkpoint / REFERENCE_MODEL_FILE
    if not file.exists():
        raise UserError(
            f"{checkpoint} does not hold the reference model, which "
            "trainer.extra.sync_ref_model=true moves: the run cannot be resumed from it"
        )
    load_model(model, str(file))


def _load_adapter(model: PeftModel, name: str, folder: Path) -> None:
    """Load an adapter, and prove that the model then has each of its tensors."""
    saved = load_peft_weights(str(folder), device="cpu")
    set_peft_model_state_dict(model, dict(saved), adapter_name=name)
    loaded = get_peft_model_state_dict(model, adapter_name=name)
    for tensor in sorted(saved.keys() | loaded.keys()):
        if tensor not in saved or tensor not in loaded:
            raise _not_whole(folder, tensor)
        if not torch.equal(saved[tensor].to(loaded[tensor]), loaded[tensor]):
            raise _not_whole(folder, tensor)


def _not_whole(folder: Path, tensor: str) -> UserError:
    return UserError(
        f"{folder}: its weights are not those of this model ({tensor}); the run cannot be resumed "
        "from it"
    )
