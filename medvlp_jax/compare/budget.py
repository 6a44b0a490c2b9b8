"""What each method may spend: steps, seconds of training steps, or FLOPs; and how many steps that is."""

import re
from typing import Any, NamedTuple

FORMS = "--budget 1000steps, --budget 600s or --budget 2e15flops"
_WORDS = {
    "steps": "equal steps: {:,.0f} steps each",
    "s": "equal time: {:,.0f} s of training steps each",
    "flops": "equal FLOPs: {:.3g} each",
}


class Budget(NamedTuple):
    """`amount` of `unit`: steps, s or flops."""

    amount: float
    unit: str

    def __str__(self) -> str:
        return f"{self.amount:.6g}{self.unit}"

    @property
    def words(self) -> str:
        """For people: `equal time: 600 s of training steps each`."""
        return _WORDS[self.unit].format(self.amount)


def parse_budget(text: str) -> Budget:
    """The budget that `--budget` names. Raises: ValueError with the forms that it has."""
    match = re.fullmatch(rf"(\d+\.?\d*(?:e\+?\d+)?) ?({'|'.join(_WORDS)})", text.strip().lower())
    amount = float(match[1]) if match else 0.0
    if not match or not amount or (match[2] == "steps" and amount != int(amount)):
        raise ValueError(f"--budget={text!r} is none. Write {FORMS}.")
    return Budget(amount, match[2])


def steps_within(budget: Budget, *, flops: float, seconds: float | None) -> int:
    """How many steps of so many FLOPs and seconds the budget holds, cut to whole steps."""
    per_step = {"steps": 1.0, "s": seconds, "flops": flops}[budget.unit]
    if not per_step:
        raise ValueError(f"The cost of a step in {budget.unit} is not known.")
    return int(budget.amount / per_step * (1 + 1e-12))


def check_steps(name: str, budget: Budget, config: Any, steps: int) -> None:
    """Raises: ValueError when a run of so many steps has no place for its warm-up, with the budget that it takes."""
    least = config.optimizer.warmup_steps + 1
    if steps >= least:
        return
    more = f"{budget.amount * least / steps:.3g}" if steps else f"more than {budget.amount * least:.3g}"
    raise ValueError(
        f"--budget={budget} is too small: it gives {name} {steps} steps, and optimizer.warmup_steps="
        f"{config.optimizer.warmup_steps} take the first ones. Give {more}{budget.unit} or more, or "
        f"--config.optimizer.warmup_steps={steps // 10} for all."
    )
