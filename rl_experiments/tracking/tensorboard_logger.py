"""TensorBoard: event files in the run folder, written anew by each attempt."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from rl_experiments.paths import TENSORBOARD_FOLDER
from rl_experiments.tracking import tables
from rl_experiments.tracking.base import JsonDict, LoggedRun


class TensorBoardLogger:
    """Writes event files; an earlier attempt's are replaced, for they may hold steps twice."""

    first_step = 0

    def __init__(self, run: LoggedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = run.folder / TENSORBOARD_FOLDER
        shutil.rmtree(folder, ignore_errors=True)
        untyped: Any = SummaryWriter
        self._writer = untyped(str(folder))
        config = OmegaConf.to_yaml(OmegaConf.create(run.config))
        self._writer.add_text("config", _code_block(config))

    def log(self, step: int, metrics: JsonDict, episodes: list[JsonDict]) -> None:
        """Write the metrics of a step and the text of one episode."""
        for name, value in metrics.items():
            if value is not None:
                self._writer.add_scalar(name, value, step)
        for episode in episodes[:1]:
            self._writer.add_text("episode", _code_block(tables.episode_text(episode)), step)
        self._writer.flush()

    def log_results(self, step: int, evaluation: JsonDict, pictures: list[Path]) -> None:
        """Write the evaluation as scalars and as a table, and the pictures."""
        from matplotlib.image import imread

        for name, value in tables.evaluation_metrics(evaluation).items():
            self._writer.add_scalar(name, value, step)
        columns = tables.EVALUATION_COLUMNS
        rows = [columns, ["---"] * len(columns), *tables.evaluation_rows(evaluation)]
        lines = [f"| {' | '.join(map(tables.cell_text, row))} |" for row in rows]
        self._writer.add_text("evaluation", "\n".join(lines), step)
        for path in pictures:
            self._writer.add_image(path.stem, imread(path), step, dataformats="HWC")

    def close(self, *, failed: bool) -> None:
        """Close the event file."""
        self._writer.close()


def _code_block(text: str) -> str:
    """Return Markdown that shows the text as it stands."""
    return f"```\n{text}\n```"
