"""Evaluators: one file per protocol, each `run(context) -> Result`, found by name."""

from collections.abc import Callable

from medvlp_jax.evaluators import grounding, knn, linear_probe, retrieval, validation_loss, zero_shot
from medvlp_jax.evaluators.context import Context, Features, Settings
from medvlp_jax.evaluators.scores import Result, Score

__all__ = ["EVALUATORS", "Context", "Features", "Result", "Score", "Settings", "get"]

EVALUATORS: dict[str, Callable[[Context], Result]] = {
    "validation_loss": validation_loss.run,
    "retrieval": retrieval.run,
    "zero_shot": zero_shot.run,
    "linear_probe": linear_probe.run,
    "knn": knn.run,
    "grounding": grounding.run,
}


def get(name: str) -> Callable[[Context], Result]:
    """The evaluator called `name`. Raises: ValueError listing the known names."""
    if name not in EVALUATORS:
        raise ValueError(f"Unknown evaluator {name!r}. Choose one of {', '.join(sorted(EVALUATORS))}.")
    return EVALUATORS[name]
