"""LoVT's local terms: regions against what they see of the report, sentences against what they see of the image."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from medvlp_jax.losses.local import local_scores
from medvlp_jax.losses.schedules import Sweep
from medvlp_jax.losses.similarity import product, unit_rows
from medvlp_jax.losses.token_alignment import unit_contrast

SMOOTHINGS = ("exponential", "uniform", "none")


class LocalTerms(NamedTuple):
    """Four float32 scalars, of regions and of sentences: towards what they see, and back.

    LoVT adds them with weight 0.375 each to its global loss.
    """

    region_to_seen: Array
    seen_to_region: Array
    sentence_to_seen: Array
    seen_to_sentence: Array


class Regions(NamedTuple):
    """Images, as `sentence_scores` needs them, N×R×D each: what attention compares, and what regions show to it."""

    asked: Array
    shown: Array


class Sentences(NamedTuple):
    """Texts, as `sentence_scores` needs them: what asks, N×M×D, the sentences themselves, N×M×D, and their shares, N×M,
    zero for what is no sentence."""

    asking: Array
    sentence: Array
    share: Array


def spatial_targets(
    height: int = 7, width: int = 7, *, threshold: float = 0.5, beta: float = 1.0, smoothing: str = "exponential"
) -> Float[np.ndarray, "R R"]:
    """How much every region counts as positive for every other, by their distance on the grid.

    Distances are those of cells, divided by `sqrt(height^2 + width^2)`. Regions within `threshold` are positives;
    `exponential` weighs them by `exp(-distance / beta)`, `uniform` alike (what the released code does with smoothing
    off), `none` leaves a region as its only positive. Rows are divided by their sum, so the matrix is not symmetric.

    Returns: float32, R = height * width in row-major order; 22, 33 or 49 positives on the 7×7 grid of LoVT.
    Raises: ValueError for another smoothing.
    Source: philip-mueller/lovt@f548985, the weights of positives (whose float32 distances are off by up to 2e-4).
    """
    if smoothing not in SMOOTHINGS:
        raise ValueError(f"Unknown spatial smoothing {smoothing!r}. Choose one of {', '.join(SMOOTHINGS)}.")
    cell_Rx2 = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), axis=-1).reshape(-1, 2)
    distance_RxR = np.linalg.norm(cell_Rx2[:, None] - cell_Rx2, axis=-1) / math.hypot(height, width)
    if smoothing == "none":
        return np.eye(height * width, dtype=np.float32)
    target_RxR = np.where(distance_RxR <= threshold, np.exp(-distance_RxR / beta), 0.0)
    if smoothing == "uniform":
        target_RxR = (target_RxR > 0).astype(np.float64)
    return (target_RxR / target_RxR.sum(axis=1, keepdims=True)).astype(np.float32)


def sentence_region_terms(
    region_BxRxD: Float[Array, "B R D"],
    region_seen_BxRxD: Float[Array, "B R D"],
    sentence_BxMxD: Float[Array, "B M D"],
    sentence_seen_BxMxD: Float[Array, "B M D"],
    sentence_mask_BxM: Bool[Array, "B M"],
    region_weight_BxR: Float[Array, "B R"],
    sentence_weight_BxM: Float[Array, "B M"],
    *,
    target_RxR: Float[Array, "R R"],
    temperature: float = 0.3,
    valid_B: Bool[Array, " B"] | None = None,
) -> LocalTerms:
    """LoVT's four local terms, contrasts of cosines inside a sample (`token_alignment.unit_contrast`).

    Args:
      region_BxRxD, sentence_BxMxD: projected regions and sentences, any scale.
      region_seen_BxRxD, sentence_seen_BxMxD: what regions see of the report, and sentences of the image
        (`layers.cross_attention`).
      sentence_mask_BxM: real sentences; the others are neither candidates nor count.
      region_weight_BxR, sentence_weight_BxM: weights of the attention pooling. They are taken over real units, divided
        by their sum, and get no gradient.
      target_RxR: `spatial_targets`. Sentences have themselves as target, so a report of one sentence costs exactly 0.
      valid_B: samples that count in the means; those with a sentence, when omitted.

    Returns: `LocalTerms`, zero when no sample is valid.
    Source: philip-mueller/lovt@f548985, the local alignment within samples.
    """
    valid_B = jnp.any(sentence_mask_BxM, axis=1) if valid_B is None else valid_B
    shared = {"temperature": temperature, "valid_B": valid_B}
    of_regions = unit_contrast(
        region_BxRxD, region_seen_BxRxD, _to_one(region_weight_BxR), target_UxU=target_RxR, **shared
    )
    sentence_weight_BxM = _to_one(jnp.where(sentence_mask_BxM, sentence_weight_BxM, 0.0))
    of_sentences = unit_contrast(
        sentence_BxMxD, sentence_seen_BxMxD, sentence_weight_BxM, keep_BxU=sentence_mask_BxM, **shared
    )
    return LocalTerms(*of_regions, *of_sentences)


def sentence_scores(regions: Regions, sentences: Sentences) -> Float[Array, "N T"]:
    """Every image with every text: how well sentences agree with what they see of the image.

    A sentence attends over the regions; the score is the cosine of the sentence with what it sees, its mean over the
    sentences of the text weighed by their shares. For the images' own texts that is what the local terms raise.

    Returns: float32 in [-1, 1]; a text without sentences scores 0.
    """
    return local_scores(regions, sentences, _sentences_with_regions, sweep=Sweep("chunked"))


def _sentences_with_regions(image: Regions, text: Sentences) -> Array:
    attention_MxR = jax.nn.softmax(product(text.asking, image.asked.T), axis=1)
    seen_MxD = product(attention_MxR, image.shown)
    cosine_M = jnp.sum(unit_rows(text.sentence) * unit_rows(seen_MxD), axis=1)
    return jnp.sum(_to_one(text.share[None])[0] * cosine_M)


def _to_one(weight_BxU: Array) -> Array:
    return weight_BxU / jnp.maximum(jnp.sum(weight_BxU, axis=1, keepdims=True), 1e-12)
