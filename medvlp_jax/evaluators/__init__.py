"""Evaluators: one file per protocol, each `run(context) -> {score name: float}`, found by name."""

from collections.abc import Callable

from medvlp_jax.evaluators import retrieval, validation_loss
from medvlp_jax.evaluators.context import Context

EVALUATORS: dict[str, Callable[[Context], dict[str, float]]] = {
    "validation_loss": validation_loss.run,
    "retrieval": retrieval.run,
}


def get(name: str) -> Callable[[Context], dict[str, float]]:
    """The evaluator called `name`. Raises: ValueError listing the known names."""
    if name not in EVALUATORS:
        raise ValueError(f"Unknown evaluator {name!r}. Choose one of {', '.join(sorted(EVALUATORS))}.")
    return EVALUATORS[name]
