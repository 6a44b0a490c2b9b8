"""The loss terms on a split, in evaluation mode, on fixed augmentations."""

from medvlp_jax.evaluators.context import Context


def run(context: Context) -> dict[str, float]:
    """Mean of every loss term over the split, batches weighted by their number of real examples.

    A contrastive loss depends on its batch size: compare values of one `batch_size` only. Padding takes no part.
    Returns: `loss`, and `loss/<term>` for the method's terms.
    """
    sums: dict[str, float] = {}
    count = 0
    for terms, examples in context.terms():
        count += examples
        for name, value in terms.items():
            sums[name] = sums.get(name, 0.0) + value * examples
    return {name if name == "loss" else f"loss/{name}": total / count for name, total in sums.items()}
