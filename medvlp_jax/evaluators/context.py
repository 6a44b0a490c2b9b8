"""What an evaluator sees of a run: embeddings and loss terms of a split, never the model."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from medvlp_jax.methods.embeddings import ImageEmbedding, TextEmbedding


class Embedded(NamedTuple):
    """One batch in the towers' spaces, NumPy, padding already cut off: N rows.

    fields: the batch fields that are neither pixels nor tokens, such as `has_findings`, `impression_hash`, `labels`.
    """

    image: ImageEmbedding
    text: TextEmbedding
    fields: dict[str, np.ndarray]


class Context(NamedTuple):
    """A split through a model.

    embedded(): batches of evaluation views in record order. terms(): per batch of augmented views, the loss terms in
    evaluation mode and the number of real examples. Both give the same values on every process.
    """

    embedded: Callable[[], Iterator[Embedded]]
    terms: Callable[[], Iterator[tuple[dict[str, float], int]]]
