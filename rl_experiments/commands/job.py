"""Turn failures that the user can mend into one line, in a job as on the command line."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from rl_experiments.config.messages import explain_config_error
from rl_experiments.errors import UserError, one_line
from rl_experiments.storage.disk_errors import disk_error, is_disk_error
from rl_experiments.terminal import interrupts


def user_message(error: BaseException) -> str | None:
    """Return the line to show for an error that the user can mend.

    The result is None for a fault of the program, for which the traceback should be shown.
    """
    if isinstance(error, OSError) and is_disk_error(error):
        return str(disk_error(error))
    return explain_config_error(error)


def job(function: Callable[[DictConfig], float]) -> Callable[[DictConfig], float]:
    """Decorate the function of a job so that it raises `UserError` for what the user can mend.

    The launcher shows the message of a `UserError` as it is, wherever the job ran.
    """

    @functools.wraps(function)
    def run(cfg: DictConfig) -> float:
        logging.raiseExceptions = False  # of a log file on a full disk, which is reported once
        interrupts.watch()  # this may be a process that the launcher has started
        if HydraConfig.initialized() and HydraConfig.get().mode is RunMode.RUN:
            raise UserError(
                "hydra.mode=RUN: runs the job without the launcher, so without gpu, plan and "
                "budget; leave it out"
            )
        try:
            return function(cfg)
        except UserError:
            raise
        except Exception as error:
            message = user_message(error) or _out_of_memory_message(error, cfg)
            if message is None:
                raise
            raise UserError(message) from error

    return run


def _out_of_memory_message(error: Exception, cfg: DictConfig) -> str | None:
    # torch.OutOfMemoryError, by its name because importing torch takes seconds.
    if not isinstance(error, RuntimeError) or type(error).__name__ != "OutOfMemoryError":
        return None
    from rl_experiments.models.memory import out_of_memory_advice

    return f"{one_line(str(error)).split('. ')[0]}; {out_of_memory_advice(cfg)}"
