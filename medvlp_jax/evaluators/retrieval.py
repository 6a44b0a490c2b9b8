"""Image to report retrieval and back: recall at K and median rank, beside what guessing would reach.

Candidates are the *distinct* texts of the split, so that copies of one report count once; an image must find its own
text. A text, asked for once, may find any image that carries it: several images of a study, or studies reported in the
same words. Ties count half, so that a collapsed model scores like guessing.
"""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from medvlp_jax.evaluators.context import Context

CUTOFFS = (1, 5, 10)
BLOCK = 1024  # queries scored at a time


def run(context: Context) -> dict[str, float]:
    """Scores per text section that images are aligned with, and for `report`: all sections of a study together.

    Returns: for each section, with the prefix `retrieval/<section>/`: `<direction>_R@{1,5,10}` and
      `<direction>_chance_R@{1,5,10}` in percent, `<direction>_median_rank`, for the directions `image_to_text` and
      `text_to_image`; `images` and `texts`, the sizes of the pools. Sections without two texts are left out.
    """
    image, text, has, text_id = _collect(context)
    scores: dict[str, float] = {}
    for section in image:
        scores |= _section(section, [(image[section], text[section], has[section])], text_id[section])
    if len(image) > 1:
        # A report is the pair of its sections: two studies share it when they share both.
        report_id = np.unique(np.stack([np.where(has[s], text_id[s], -1) for s in image]), axis=1, return_inverse=True)[
            1
        ]
        scores |= _section("report", [(image[s], text[s], has[s]) for s in image], report_id.reshape(-1))
    return scores


def _collect(context: Context) -> tuple[dict[str, NDArray], ...]:
    columns: tuple[dict[str, list[NDArray]], ...] = ({}, {}, {}, {})
    for batch in context.embedded():
        for section, vector_NxD in batch.text.aligned.items():
            row = (
                batch.image.aligned[section][:, 0],
                vector_NxD,
                batch.fields[f"has_{section}"].astype(bool),
                batch.fields[f"{section}_hash"],
            )
            for column, value in zip(columns, row, strict=True):
                column.setdefault(section, []).append(value)
    return tuple({s: np.concatenate(parts) for s, parts in column.items()} for column in columns)


def _section(name: str, parts: list[tuple[NDArray, NDArray, NDArray]], text_id_N: NDArray) -> dict[str, float]:
    keep_N = np.any([has_N for _, _, has_N in parts], axis=0)
    _, first_M, own_n = np.unique(text_id_N[keep_N], return_index=True, return_inverse=True)
    if len(first_M) < 2:
        return {}
    parts = [(_unit(image[keep_N]), _unit(text[keep_N]), has[keep_N]) for image, text, has in parts]
    prefix = f"retrieval/{name}/"
    ranks = {
        "image_to_text": image_to_text_ranks(_blocks(parts, first_M), own_n),
        "text_to_image": text_to_image_ranks(_blocks(parts, first_M), own_n, len(first_M)),
    }
    counts_M = np.bincount(own_n)
    scores = {f"{prefix}images": float(len(own_n)), f"{prefix}texts": float(len(first_M))}
    for direction, rank in ranks.items():
        for k in CUTOFFS:
            scores[f"{prefix}{direction}_R@{k}"] = 100.0 * float(np.mean(rank <= k))
            if direction == "image_to_text":
                chance = min(k / len(first_M), 1.0)
            else:
                chance = float(np.mean([chance_of_hit(int(c), len(own_n), k) for c in counts_M]))
            scores[f"{prefix}{direction}_chance_R@{k}"] = 100.0 * chance
        scores[f"{prefix}{direction}_median_rank"] = float(np.median(rank))
    return scores


def _blocks(parts: list[tuple[NDArray, NDArray, NDArray]], first_M: NDArray) -> Iterator[NDArray]:
    """Scores of blocks of images against the distinct texts: the mean cosine over the sections that a text has."""
    has_SxM = np.stack([has[first_M] for _, _, has in parts]).astype(np.float32)
    for start in range(0, len(parts[0][0]), BLOCK):
        rows = slice(start, start + BLOCK)
        total_qxM = sum(
            (image[rows] @ text[first_M].T) * has_M for (image, text, _), has_M in zip(parts, has_SxM, strict=True)
        )
        yield total_qxM / has_SxM.sum(axis=0)


def image_to_text_ranks(blocks: Iterator[NDArray], own_N: NDArray) -> NDArray[np.float64]:
    """Rank (1 is best, ties count half) of each image's own text.

    Args: blocks: consecutive score blocks q×M. own_N: column of each image's text.
    """
    ranks, start = [], 0
    for score_qxM in blocks:
        own_q = own_N[start : start + len(score_qxM)]
        start += len(score_qxM)
        own_score_qx1 = np.take_along_axis(score_qxM, own_q[:, None], axis=1)
        above_q = np.sum(score_qxM > own_score_qx1, axis=1)
        ties_q = np.sum(score_qxM == own_score_qx1, axis=1) - 1
        ranks.append(1.0 + above_q + 0.5 * ties_q)
    return np.concatenate(ranks)


def text_to_image_ranks(blocks: Iterator[NDArray], own_N: NDArray, texts: int) -> NDArray[np.float64]:
    """Rank of the best image among all images, for each text that some image carries.

    Args: blocks: consecutive score blocks q×M. own_N: column of each image's text. texts: M.
    """
    score_NxM = np.concatenate(list(blocks))
    ranks = np.empty(texts)
    for m in range(texts):
        score_N = score_NxM[:, m]
        mine_N = own_N == m
        best = score_N[mine_N].max()
        others_n = score_N[~mine_N]
        ranks[m] = 1.0 + np.sum(others_n > best) + 0.5 * np.sum(others_n == best)
    return ranks


def chance_of_hit(relevant: int, total: int, k: int) -> float:
    """Probability that a random order of `total` candidates has one of the `relevant` among its first `k`."""
    if k >= total or relevant > total - k:
        return 1.0
    return 1.0 - math.exp(
        math.lgamma(total - relevant + 1)
        - math.lgamma(total - relevant - k + 1)
        - math.lgamma(total + 1)
        + math.lgamma(total - k + 1)
    )


def _unit(x_NxD: NDArray) -> NDArray[np.float32]:
    x_NxD = np.asarray(x_NxD, np.float32)
    return x_NxD / np.maximum(np.linalg.norm(x_NxD, axis=1, keepdims=True), 1e-12)
