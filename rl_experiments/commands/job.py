"""What turns the failures of a job that a user can mend into a `UserError`."""

from __future__ import annotations

import functools
from collections.abc import Callable

from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from rl_experiments.errors import UserError, one_line, what_to_tell


def task(function: Callable[[DictConfig], float]) -> Callable[[DictConfig], float]:
    """A job's function whose mistakes of the user end as a `UserError`, wherever it runs."""

    @functools.wraps(function)
    def run(cfg: DictConfig) -> float:
        try:
            return function(cfg)
        except UserError:
            raise
        except (HydraException, OmegaConfBaseException, OSError) as error:
            line = what_to_tell(error)
            if line is None:
                raise
            raise UserError(line) from error
        except RuntimeError as error:
            if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported here
                raise
            from rl_experiments.models.memory import out_of_memory_advice

            raise UserError(
                f"{one_line(str(error)).split('. ')[0]}; {out_of_memory_advice(cfg)}"
            ) from error

    return run
