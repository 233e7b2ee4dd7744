"""The `audit` verb: whether the reward of an environment, or of a judge, can be trusted."""

from __future__ import annotations

from rich.table import Table

from environments import End
from rl_experiments.audit.environment import EnvironmentAudit
from rl_experiments.audit.judge import audit_judge
from rl_experiments.config.experiment import Experiment
from rl_experiments.config.overrides import override_texts
from rl_experiments.errors import UserError
from rl_experiments.preflight import compose_and_check
from rl_experiments.stats.intervals import format_estimate
from rl_experiments.terminal.progress import Progress
from rl_experiments.terminal.tables import new_table

# num_examples where no override sets it.
_TASKS_OF_AN_ENVIRONMENT = "200"
_GROUPS_FOR_A_JUDGE = "20"


def audit(overrides: list[str]) -> None:
    """Print how policies without a model do in an environment, and what is wrong with its reward.

    With a setting of a judge among the overrides, the judge is audited, on groups of scripted
    policies. Raises a `UserError` if anything is wrong.
    """
    is_of_judge = any(key.split(".")[0] == "judge" for key in override_texts(overrides))
    experiment = compose_and_check(
        overrides,
        example="env=wordle env.words=tiny",
        name="audit",
        num_examples=_GROUPS_FOR_A_JUDGE if is_of_judge else _TASKS_OF_AN_ENVIRONMENT,
    )
    progress = Progress()
    if is_of_judge:
        audit_judge(experiment.config, experiment.environment, progress)
    else:
        _audit_environment(experiment, progress)


def _audit_environment(experiment: Experiment, progress: Progress) -> None:
    config = experiment.config
    with progress.status("playing without a model"):
        result = EnvironmentAudit(experiment.environment, config.num_examples)
    settings = {key: value for key, value in config.env.items() if key != "_target_"}
    progress.print(" ".join(f"{key}={value}" for key, value in settings.items()))
    progress.print(_table(result))
    for note in result.notes:
        progress.print(f"note: {note}")
    for line in result.faults or ["no fault found"]:
        progress.print(line)
    if result.faults:
        count = len(result.faults)
        raise UserError(f"env={config.env.get('name')}: {count} fault{'s' * (count > 1)} found")


def _table(audit: EnvironmentAudit) -> Table:
    """Return a row for each policy: the baselines first, then those without skill."""
    title = f"seeds 0 to {len(audit.specs) - 1}, without a model; 95 % intervals"
    table = new_table(title, "policy", "n", "mean reward", "win rate", "ends", text=["ends"])
    last_baseline = list(audit.baselines)[-1]
    for name, result in audit.results.items():
        count = len(result.rewards)
        table.add_row(
            name,
            str(count),
            format_estimate(result.mean),
            f"{result.ends[End.WON] / count:.3f}",
            ", ".join(f"{end} {number}" for end, number in result.ends.most_common()),
            style="bold" if name == audit.oracle else "",
            end_section=name == last_baseline,
        )
    return table
