"""Where things lie: the settings, the runs, and the name of every file inside a run folder."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

_PACKAGE = Path(__file__).parent
# A wheel carries conf/ inside the package; a checkout has it beside the package.
CONF_DIR = next(d for d in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if d.is_dir())

# All runs of this working folder. The run folder of a job is runs/NAME/JOB, JOB counting from 0.
RUNS = Path("runs")

# In a run folder. Beside these, Hydra keeps `.hydra/` and `rl_experiments.log` there, the launcher
# keeps `.job/`.
CONFIG_FILE = "config.yaml"  # the composed settings; interpolations are kept, secrets are not in it
RUN_FILE = "run.json"  # commit, package versions, machine, seeds, overrides, when it began
METRICS_FILE = "metrics.jsonl"  # a line for each optimizer step: its metrics
EPISODES_FILE = "episodes.jsonl"  # a line for each training episode: turns, reward, how it ended
EVALUATION_FOLDER = "evaluation"  # a file for each policy, a line in it for each episode played
EVALUATION_FILE = "evaluation.json"  # the results of all policies, and their differences
SECONDS_FILE = "seconds.jsonl"  # in evaluation/: how long each attempt played each policy
VALIDATION_FOLDER = "validation"  # like evaluation/, of the evaluations during training
LEARNING_CURVE_FILE = "learning_curve.png"  # win rate and reward over the optimizer steps
JUDGE_FOLDER = "judge"  # the judge's paid answers, what they cost, and whether there is a judge
JUDGE_ENABLED_FILE = "wanted.json"  # in judge/: whether the run has a judge, decided once
CHECKPOINTS_FOLDER = "checkpoints"  # one folder for each checkpoint, see `checkpoint_name`
HASHES_FILE = "hashes.json"  # fingerprints of the checkpoints that this run itself has written
LOGGER_IDS_FILE = "loggers.json"  # the run's ids at W&B and Trackio, by which a resume finds it
TENSORBOARD_FOLDER = "tensorboard"  # TensorBoard's event files
TRACKIO_FOLDER = "trackio"  # Trackio's database, where TRACKIO_DIR names no other folder
WANDB_FOLDER = "wandb"  # what W&B writes, among it the files of offline runs
VLLM_LOG_FILE = "vllm.log"  # the output of `vllm serve`
WRITER_LOCK_FILE = ".lock"  # locked by the one process that may write the run

_MAX_STEM = 100  # bytes; file systems take 255

# In a checkpoint's folder. The weights' files have the names that transformers and peft give them.
MANIFEST_FILE = "manifest.json"  # size and SHA-256 of every file; written last, so it is complete
RECORDS_FOLDER = "run"  # copies of the run's records: a checkpoint alone suffices to go on
ADAPTER_CONFIG_FILE = "adapter_config.json"  # peft's: the checkpoint holds a LoRA adapter
REFERENCE_MODEL_FILE = "reference/model.safetensors"  # of the KL term, in runs in which it moves
MODEL_CONFIG_FILE = "config.json"  # transformers': the checkpoint holds a whole model


def checkpoint_name(step: int | str) -> str:
    """Return the name of the folder of a checkpoint, or the pattern of such names.

    The Trainer of transformers prescribes it.
    """
    return f"checkpoint-{step}"


def policy_file_stem(name: str, others: Sequence[str] = ()) -> str:
    """Return what the names of a policy's files in evaluation/ begin with.

    It is the name with all that is unfit for a file replaced. A mark follows where that is the one
    of a policy among `others`, which come before it, or of a file of another kind.
    """
    stem = re.sub(r"[^\w.+-]+", "_", name)
    stems_before = {re.sub(r"[^\w.+-]+", "_", other).casefold() for other in others}
    is_reserved = re.search(r"^seconds$|\.replies(-\d+)?$", stem.casefold()) is not None
    if stem.casefold() not in stems_before and not is_reserved and len(stem.encode()) <= _MAX_STEM:
        return stem
    short = stem.encode()[:_MAX_STEM].decode(errors="ignore")
    return f"{short}-{hashlib.sha256(name.encode(errors='replace')).hexdigest()[:8]}"


def policy_episodes_file(name: str) -> str:
    """Return the name of the file in evaluation/ with the episodes of a policy."""
    return f"{name}.jsonl"


def policy_replies_file(name: str, rank: int) -> str:
    """Return the name of the file in evaluation/ with the paid answers of a model behind an API."""
    return f"{name}.replies{f'-{rank}' if rank else ''}.jsonl"


def judge_answers_file(rank: int) -> str:
    """Return the name of the file in judge/ with the answers that one process has paid for."""
    return f"answers-{rank}.jsonl"


def judge_spending_file(rank: int) -> str:
    """Return the name of the file in judge/ with what one process has spent."""
    return f"spent-{rank}.json"


def cache_folder() -> Path:
    """Return the folder of this user for models made at random and for downloaded checkpoints."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "rl_experiments" / "scratch"
