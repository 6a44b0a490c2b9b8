"""Where the training time went, from the clock and the rates in `metrics.jsonl`."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Timing(NamedTuple):
    """Seconds of the training clock by use, over all sessions of a run; rates over the steps that were measured.

    computing: steps, without waiting for data. starting: first interval of each session (compilation, first steps).
    pauses: evaluation and checkpoints. Time between sessions is not on the clock.
    """

    steps: int
    seconds: float
    computing: float
    waiting: float
    pauses: float
    starting: float
    sessions: int
    steps_per_second: float
    images_per_second: float

    @property
    def goodput(self) -> float:
        """Share of the clock spent computing steps."""
        return self.computing / self.seconds if self.seconds else 0.0

    @property
    def wait_share(self) -> float:
        """Share of the measured step time spent waiting for data."""
        working = self.computing + self.waiting
        return self.waiting / working if working else 0.0


def timing(training: Sequence[Mapping[str, Any]]) -> Timing | None:
    """Timing from the training lines of a run; None when they hold no clock."""
    computing = waiting = pauses = starting = images = 0.0
    measured = sessions = 0
    before = {"step": 0, "seconds": 0.0}
    lines = [line for line in training if isinstance(line.get("seconds"), int | float)]
    for line in lines:
        elapsed = max(line["seconds"] - before["seconds"], 0.0)
        steps = line["step"] - before["step"]
        speed = line.get("steps_per_second")
        if not speed:  # a session's first line has no rates
            sessions += 1
            starting += elapsed
        elif steps > 0:
            working = min(steps / speed, elapsed)
            waited = working * line.get("data_wait_share", 0.0)
            computing, waiting, pauses = computing + working - waited, waiting + waited, pauses + elapsed - working
            images += line.get("images_per_second", 0.0) * working
            measured += steps
        before = line
    if not lines or not before["seconds"]:
        return None
    working = computing + waiting
    return Timing(
        steps=before["step"],
        seconds=before["seconds"],
        computing=computing,
        waiting=waiting,
        pauses=pauses,
        starting=starting,
        sessions=max(sessions, 1),
        steps_per_second=measured / working if working else 0.0,
        images_per_second=images / working if working else 0.0,
    )
