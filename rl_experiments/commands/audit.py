"""The `audit` verb: an environment under policies without skill, and what is wrong with it."""

from __future__ import annotations

import re

from rich import box
from rich.table import Table

from environments import End
from rl_experiments.audit.environment import EnvironmentAudit
from rl_experiments.audit.judge import audit_judge
from rl_experiments.errors import UserError
from rl_experiments.preflight import composed
from rl_experiments.stats.intervals import format_estimate
from rl_experiments.terminal.progress import Progress

_TASKS = "200"  # num_examples
_GROUPS = "20"  # the same where a judge is audited


def audit(overrides: list[str]) -> None:
    """Print how the policies do and what is wrong; a `UserError` if anything is.

    With a judge among the settings it is the judge that is tried, on groups of scripted policies.
    """
    is_of_judge = any(re.match(r"judge[.=]", word) for word in overrides)
    number = _GROUPS if is_of_judge else _TASKS
    example = "env=wordle env.words=tiny"
    experiment = composed(overrides, example=example, name="audit", num_examples=number)
    config, progress = experiment.config, Progress()
    if is_of_judge:
        return audit_judge(config, experiment.environment, progress)
    with progress.status("playing without a model"):
        found = EnvironmentAudit(experiment.environment, config.num_examples)
    settings = {key: value for key, value in config.env.items() if key != "_target_"}
    progress.print(" ".join(f"{key}={value}" for key, value in settings.items()))
    progress.print(_table(found))
    lines = [*(f"note: {note}" for note in found.notes), *found.faults]
    for line in lines if found.faults else [*lines, "no fault found"]:
        progress.console.print(line, highlight=False, markup=False, soft_wrap=True)
    if found.faults:
        count = len(found.faults)
        raise UserError(f"env={config.env.get('name')}: {count} fault{'s' * (count > 1)} found")


def _table(found: EnvironmentAudit) -> Table:
    title = f"seeds 0 to {len(found.specs) - 1}, without a model; 95 % intervals"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    table.add_column("policy", no_wrap=True)
    for column in ("n", "mean reward", "win rate"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("ends")
    last = list(found.baselines)[-1]
    for name, result in found.results.items():
        count = len(result.rewards)
        cells = (format_estimate(result.mean), f"{result.ends[End.WON] / count:.3f}")
        ends = ", ".join(f"{end} {number}" for end, number in result.ends.most_common())
        style = "bold" if name == found.oracle else ""
        table.add_row(name, str(count), *cells, ends, style=style, end_section=name == last)
    return table
