"""The functions of the toy jobs: one trains with checkpoints, the others fail in every way."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from importlib import import_module
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

CANARIES = ("WANDB_API_KEY", "FROM_DOTENV", "HF_TOKEN")


def train(cfg: DictConfig) -> float:
    """Take steps from the last checkpoint on, until asked to stop. Return x."""
    done = _last_checkpoint() if cfg.resume else 0
    print(f"\x1efrom step {done}", flush=True)  # the mark of a supervisor's line is removed
    for step in range(done + 1, cfg.steps + 1):
        try:
            time.sleep(cfg.seconds)
            _save(step)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"interrupted at step {step}") from None
        if os.path.exists(os.environ.get("HYDRA_JOB_STOP", "")):
            raise RuntimeError(f"asked to stop at step {step}")
    return float(cfg.x)


def stubborn(cfg: DictConfig) -> float:
    """Train and ignore every request to end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for step in range(_last_checkpoint() + 1, cfg.steps + 1):
        time.sleep(cfg.seconds)
        _save(step)
    return 0.0


def stuck(cfg: DictConfig) -> float:
    """Run for ever without a checkpoint."""
    print("stuck", flush=True)
    time.sleep(600)
    return 0.0


def say(cfg: DictConfig) -> float:
    """Print the text."""
    print(cfg.text, flush=True)
    return 0.0


def terminal_width(cfg: DictConfig) -> int:
    """Return the columns of the terminal that stdout is."""
    return os.get_terminal_size(sys.stdout.fileno()).columns


def fail(cfg: DictConfig) -> float:
    raise ValueError(f"no such luck with x={cfg.x}")


def fail_while_file_exists(cfg: DictConfig) -> float:
    """Fail if x is odd and the file exists whose path is `text`; train otherwise."""
    if cfg.x % 2 and os.path.exists(cfg.text):
        raise ValueError("the file exists")
    return train(cfg)


def flaky(cfg: DictConfig) -> float:
    """Lose the network once, then succeed."""
    tries = _folder() / "tries"
    if not tries.exists():
        tries.touch()
        raise ConnectionResetError("the network went away")
    return 1.0


def lack_memory(cfg: DictConfig) -> float:
    class OutOfMemoryError(RuntimeError):
        pass

    raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def lack_package(cfg: DictConfig) -> float:
    import_module("a_package_that_is_not_there")
    return 0.0


def draw_a_bar(cfg: DictConfig) -> float:
    for percent in range(101):
        print(f"\r{percent} %", end="", file=sys.stderr)
    print(file=sys.stderr)
    return 0.0


def leave(cfg: DictConfig) -> float:
    sys.exit(3)


def leave_well(cfg: DictConfig) -> float:
    sys.exit(0)


def vanish(cfg: DictConfig) -> float:
    print("about to vanish", flush=True)
    os._exit(7)


class Unpicklable(Exception):
    def __init__(self, first: str, second: str) -> None:
        super().__init__(first)
        self.second = (second, lambda: None)


def fail_unpicklably(cfg: DictConfig) -> float:
    raise Unpicklable("cannot be sent", "at all")


def ranks(cfg: DictConfig) -> str:
    """Write and return the rank of each process."""
    rank, world = os.environ["RANK"], os.environ["WORLD_SIZE"]
    (_folder() / f"rank-{rank}").write_text(world)
    return f"rank {rank} of {world}"


def fail_second(cfg: DictConfig) -> float:
    """Fail on rank 1 while rank 0 waits for ever."""
    if os.environ["RANK"] == "1":
        raise ValueError("no such luck on rank 1")
    time.sleep(600)
    return 0.0


def leak_secrets(cfg: DictConfig) -> list[int]:
    """Let out every secret in each way that a job has; return their lengths."""
    values = [*(os.environ[name] for name in CANARIES), cfg.text]
    for value in values:
        print("printed:", value, flush=True)
        print("printed as an error:", value, file=sys.stderr, flush=True)
        logging.getLogger("toy").error("logged: %s", value)
    try:
        raise ValueError(values)
    except ValueError:
        logging.getLogger("toy").exception("caught")
    return [len(value) for value in values]


def fail_with_secrets(cfg: DictConfig) -> float:
    values = [os.environ[name] for name in CANARIES]
    (_folder() / "lengths").write_text(json.dumps([len(value) for value in values]))
    raise ValueError(f"could not log in with {' or '.join(values)}")


def _folder() -> Path:
    return Path(HydraConfig.get().runtime.output_dir)


def _last_checkpoint() -> int:
    return max((int(path.name) for path in (_folder() / "checkpoints").glob("*")), default=0)


def _save(step: int) -> None:
    folder = _folder() / "checkpoints"
    folder.mkdir(exist_ok=True)
    (folder / str(step)).write_text("weights")
    with (_folder() / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, "pid": os.getpid()}) + "\n")
    print(f"step {step}", flush=True)
