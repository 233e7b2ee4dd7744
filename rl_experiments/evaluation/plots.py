"""The learning curve as a picture, with the scripted baselines as horizontal lines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rl_experiments.storage.files import atomic_path, read_json_lines

if TYPE_CHECKING:
    from rl_experiments.evaluation.runner import Evaluation


def plot_learning_curve(metrics: Path, evaluation: Evaluation, picture: Path) -> None:
    """Draw win rate and reward of the training episodes over optimizer steps, as a PNG.

    `metrics` is the run's metrics.jsonl. The policies before and after training stand at the first
    and last step with their intervals; every other policy of the evaluation is a dashed line.
    """
    import matplotlib

    matplotlib.use("Agg")  # draws without a screen
    import matplotlib.pyplot as plt

    records = list(read_json_lines(metrics, "step"))
    steps = [record["step"] for record in records]
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2))
    figure.subplots_adjust(left=0.06, right=0.985, bottom=0.12, top=0.97, wspace=0.18)
    colours = plt.rcParams["axes.prop_cycle"].by_key()["color"]
    panels = ((axes[0], "win_rate", "win rate"), (axes[1], "reward", "reward of an episode"))
    for axis, key, label in panels:
        axis.plot(steps, [record.get(key) for record in records], lw=1.2, label="training episodes")
        for i, (name, result) in enumerate(evaluation.results.items()):
            estimate = getattr(result, key)
            if estimate is None:
                continue
            if name in ("before", "after"):
                x = 0 if name == "before" else max(steps, default=0)
                bar = [[estimate.value - estimate.low], [estimate.high - estimate.value]]
                axis.errorbar(x, estimate.value, yerr=bar, fmt="ko", capsize=4, ms=4, zorder=5)
                side, right = ("left", 4) if name == "before" else ("right", -4)
                place = (x, estimate.value)
                axis.annotate(name, place, (right, 6), textcoords="offset points", ha=side)
            else:
                colour = colours[1 + i % (len(colours) - 1)]
                axis.axhline(estimate.value, ls="--", lw=1, color=colour, label=name)
        axis.set_xlabel("optimizer step")
        axis.set_ylabel(label)
    axes[0].set_ylim(0, 1)
    axes[1].legend(fontsize=8)
    with atomic_path(picture) as building:
        figure.savefig(building, dpi=120, format="png")
    plt.close(figure)
