"""The loss terms on a split, in evaluation mode, on fixed augmentations."""

from medvlp_jax.evaluators.context import Context
from medvlp_jax.evaluators.scores import Result, Score

PROTOCOL = (
    "Mean of every loss term over the first batches of the split, as many as hold evaluation.max_loss examples (0: "
    "all), in evaluation mode, on augmented views that are the same each time, batches weighted by their number of "
    "real examples. A contrastive loss depends on its batch size: compare values of one eval_batch_size only."
)


def run(context: Context) -> Result:
    """Scores `loss` and `loss/<term>` for the method's terms. Padding takes no part."""
    sums: dict[str, float] = {}
    count = 0
    for terms, examples in context.terms(context.split):
        count += examples
        for name, value in terms.items():
            sums[name] = sums.get(name, 0.0) + value * examples
    names = {name: name if name == "loss" else f"loss/{name}" for name in sums}
    return Result([Score(names[name], total / count, count) for name, total in sums.items()], PROTOCOL)
