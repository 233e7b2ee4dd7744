"""Text environments that play on the standard library alone; one folder and one YAML each."""

from environments.protocol import (
    End,
    Environment,
    ScriptedPolicy,
    Step,
    evaluation_seed,
    is_evaluation_seed,
    training_seed,
)

__all__ = [
    "End",
    "Environment",
    "ScriptedPolicy",
    "Step",
    "evaluation_seed",
    "is_evaluation_seed",
    "training_seed",
]
