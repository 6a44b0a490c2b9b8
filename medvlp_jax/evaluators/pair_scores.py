"""Is an image nearer to the texts that affirm a finding or to those that deny it: one score from two cosines."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from medvlp_jax.heatmap import unit

RULES = ("chexzero", "medclip", "biovil")


class PairScores(NamedTuple):
    """Per image: score in (0, 1), above 0.5 when nearer to the affirming texts; cosines with both sides. Float64."""

    score_N: Float[np.ndarray, " N"]
    positive_N: Float[np.ndarray, " N"]
    negative_N: Float[np.ndarray, " N"]


def pair_scores(
    image_NxD: Float[np.ndarray, "N D"],
    positive_PxD: Float[np.ndarray, "P D"],
    negative_QxD: Float[np.ndarray, "Q D"],
    *,
    rule: str = "chexzero",
) -> PairScores:
    """sigmoid(cos+ - cos-), without a logit scale.

    Args:
      image_NxD, positive_PxD, negative_QxD: vectors of any scale; P texts affirm, Q texts deny.
      rule: how the texts of one side become one. `chexzero`: their unit vectors are averaged and normalised again.
        `medclip`: the cosines with each text are averaged. `biovil`: their vectors are averaged as they are and
        normalised. With one text per side all three agree. MedCLIP and BioViL decide between the sides by their
        larger cosine; the sigmoid keeps that order.
    Raises: ValueError for an unknown rule, a side without texts, or widths that differ.
    Source: rajpurkarlab/CheXzero zero_shot.py; RyanWangZf/MedCLIP prompts; microsoft/hi-ml health_multimodal.
    """
    if rule not in RULES:
        raise ValueError(f"Unknown rule {rule!r}. Choose one of {', '.join(RULES)}.")
    image_NxD, *sides = (np.asarray(x, np.float64) for x in (image_NxD, positive_PxD, negative_QxD))
    for name, side in zip(("positive", "negative"), sides, strict=True):
        if side.ndim != 2 or not len(side) or side.shape[1] != image_NxD.shape[-1]:
            raise ValueError(f"{name} texts have shape {side.shape}; needed: (at least 1, {image_NxD.shape[-1]}).")
    image_NxD = unit(image_NxD, np.float64)
    positive_N, negative_N = (image_NxD @ _one_vector(side, rule) for side in sides)
    return PairScores(1.0 / (1.0 + np.exp(negative_N - positive_N)), positive_N, negative_N)


def _one_vector(side_PxD: Float[np.ndarray, "P D"], rule: str) -> Float[np.ndarray, " D"]:
    if rule == "biovil":
        return unit(side_PxD.mean(axis=0), np.float64)
    mean_D = unit(side_PxD, np.float64).mean(axis=0)
    return mean_D if rule == "medclip" else unit(mean_D, np.float64)
