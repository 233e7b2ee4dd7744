"""A small Hydra application, whose setting `do` names the function of `jobs.py` to run."""

from __future__ import annotations

from typing import Any

import hydra
from omegaconf import DictConfig

from . import jobs


@hydra.main(version_base=None, config_path="conf", config_name="config")
def main(cfg: DictConfig) -> Any:
    return getattr(jobs, cfg.do)(cfg)


if __name__ == "__main__":
    main()
