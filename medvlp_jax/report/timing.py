"""Where the time of a run went: the account that training keeps (`goodput`), as `metrics.jsonl` holds it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from medvlp_jax import goodput


class Timing(NamedTuple):
    """The measured account of a run over all its attempts.

    steps: the last one. seconds: wall clock by use (`goodput.USES`), restarts and time between attempts included.
    lost_steps: computed, lost in a crash and computed again. Rates: of the steps that stayed, the first of each attempt
    left out.
    """

    steps: int
    seconds: dict[str, float]
    attempts: int
    lost_steps: int
    steps_per_second: float
    images_per_second: float

    @property
    def total(self) -> float:
        """Seconds from the first start to the end."""
        return sum(self.seconds.values())

    @property
    def goodput(self) -> float:
        """Share of all seconds spent on steps that stayed."""
        return goodput.share(self.seconds)

    @property
    def wait_share(self) -> float:
        """Share of the time of steps spent waiting for data."""
        working = self.seconds["step"] + self.seconds["data_wait"]
        return self.seconds["data_wait"] / working if working else 0.0

    @property
    def uses(self) -> list[tuple[str, str, float, float]]:
        """Name, words, seconds and share of the total of every use that took time, as `goodput.USES` orders them."""
        names = [use for use in goodput.USES if self.seconds[use] > 0]
        return [(use, goodput.USES[use], self.seconds[use], self.seconds[use] / self.total) for use in names]


def timing(training: Sequence[Mapping[str, Any]]) -> Timing | None:
    """Timing from the training lines of a run; None when they hold no account."""
    accounts = [line for line in training if all(f"goodput/{use}" in line for use in goodput.USES)]
    if not accounts:
        return None
    last = accounts[-1]
    seconds = {use: max(float(last[f"goodput/{use}"]), 0.0) for use in goodput.USES}
    working = seconds["step"] + seconds["data_wait"]
    speed = last.get("goodput/steps", 0.0) / working if working else 0.0
    images = [x["images_per_second"] / x["steps_per_second"] for x in training if x.get("steps_per_second")]
    return Timing(
        steps=last["step"],
        seconds=seconds,
        attempts=int(last.get("goodput/attempts", 1)),
        lost_steps=int(last.get("goodput/lost_steps", 0)),
        steps_per_second=speed,
        images_per_second=speed * images[-1] if images else 0.0,
    )
