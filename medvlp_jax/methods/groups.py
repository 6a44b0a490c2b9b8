"""Which examples take part in a loss, and losses over groups of the batch: what one device of a released run sees."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from medvlp_jax.losses.schedules import Sweep


def taking_part(batch: dict[str, Array], sections: Sequence[str]) -> dict[str, Array]:
    """`has_<section>` (bool B) and `<section>_hash` (int32 B) of a batch; `_mask` where examples are padding.

    Evaluation batches end in padding, which has no section and takes part in nothing.
    """
    used = {name: batch[name] for section in sections for name in (f"has_{section}", f"{section}_hash")}
    if "_mask" not in batch:
        return used
    used = {name: x & batch["_mask"] if name.startswith("has_") else x for name, x in used.items()}
    return {**used, "_mask": batch["_mask"]}


def grouped(
    terms: Callable[[Any, dict[str, Array]], dict[str, Array]],
    embeddings: Any,
    used: dict[str, Array],
    size: int,
    sweep: Sweep,
) -> dict[str, Array]:
    """`terms(embeddings, used)` of groups of `size` consecutive examples, averaged; of the whole batch for size 0.

    Args: terms: pure; named scalars. embeddings, used: trees of arrays with the batch on their first axis.
    Raises: ValueError for a batch that does not split into groups, or groups with a tiled schedule.
    """
    if not size:
        return terms(embeddings, used)
    if sweep.schedule != "dense":
        raise ValueError(
            f"loss.group_size={size} with pairs.schedule={sweep.schedule!r}: groups are small, their loss is dense. "
            "Use pairs.schedule='dense', or loss.group_size=0 for one loss over the batch."
        )

    def split(x):
        if x.shape[0] % size:
            raise ValueError(
                f"loss.group_size={size} does not divide the batch of {x.shape[0]}. Use a batch size that is a "
                f"multiple of {size}, or loss.group_size=0 for one group."
            )
        return x.reshape(x.shape[0] // size, size, *x.shape[1:])

    return {name: jnp.mean(x) for name, x in jax.vmap(terms)(*jax.tree.map(split, (embeddings, used))).items()}
