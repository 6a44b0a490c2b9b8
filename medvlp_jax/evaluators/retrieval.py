"""Image to report retrieval and back: recall at K and median rank, beside what guessing would reach.

Candidates are the *distinct* texts of the split, so that copies of one report count once; an image must find its own
text. A text, asked for once, may find any image that carries it: several images of a study, or studies reported in the
same words. Tied candidates stand in random order, in expectation, and a score that is not a number ranks last; so a
collapsed or broken model scores like guessing, never better.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medvlp_jax.evaluators.context import Context

CUTOFFS = (1, 5, 10)
BLOCK = 1024  # queries scored at a time
DECIMALS = 6  # of a cosine: equal vectors tie, whatever the order of a sum


def run(context: Context) -> dict[str, float]:
    """Scores per text section that images are aligned with, and for `report`: all sections of a study together.

    Returns: for each section, with the prefix `retrieval/<section>/`: `<direction>_R@{1,5,10}` and
      `<direction>_chance_R@{1,5,10}` in percent, `<direction>_median_rank`, for the directions `image_to_text` and
      `text_to_image`; `images` and `texts`, the sizes of the pools; `not_finite`, the number of images and texts
      whose embedding is not finite, when there are any. Sections without two texts are left out.
    """
    image, text, has, text_id = _collect(context)
    scores: dict[str, float] = {}
    for section in image:
        scores |= _section(section, [(image[section], text[section], has[section])], text_id[section])
    if len(image) > 1:
        # A report is the pair of its sections: two studies share it when they share both.
        ids_SxN = np.stack([np.where(has[s], text_id[s], -1) for s in image])
        _, report_id = np.unique(ids_SxN, axis=1, return_inverse=True)
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
    places = {
        "image_to_text": image_to_text_places(_blocks(parts, first_M), own_n),
        "text_to_image": text_to_image_places(_blocks(parts, first_M), own_n, len(first_M)),
    }
    counts_M = np.bincount(own_n)
    scores = {f"{prefix}images": float(len(own_n)), f"{prefix}texts": float(len(first_M))}
    broken = _not_finite([image for image, _, _ in parts]) + _not_finite([text[first_M] for _, text, _ in parts])
    if broken:
        scores[f"{prefix}not_finite"] = float(broken)
    for direction, place in places.items():
        for k in CUTOFFS:
            scores[f"{prefix}{direction}_R@{k}"] = 100.0 * float(np.mean(place.hits(k)))
            if direction == "image_to_text":
                chance = min(k / len(first_M), 1.0)
            else:
                chance = float(np.mean([chance_of_hit(int(c), len(own_n), k) for c in counts_M]))
            scores[f"{prefix}{direction}_chance_R@{k}"] = 100.0 * chance
        scores[f"{prefix}{direction}_median_rank"] = float(np.median(place.ranks()))
    return scores


def _blocks(parts: list[tuple[NDArray, NDArray, NDArray]], first_M: NDArray) -> Iterator[NDArray]:
    """Scores of blocks of images against the distinct texts: the mean cosine over the sections that a text has."""
    has_SxM = np.stack([has[first_M] for _, _, has in parts]).astype(np.float32)
    for start in range(0, len(parts[0][0]), BLOCK):
        rows = slice(start, start + BLOCK)
        total_qxM = sum(
            np.where(has_M > 0, image[rows] @ text[first_M].T, 0.0)
            for (image, text, _), has_M in zip(parts, has_SxM, strict=True)
        )
        score_qxM = np.round(total_qxM / has_SxM.sum(axis=0), DECIMALS)
        yield np.where(np.isfinite(score_qxM), score_qxM, -np.inf).astype(np.float32)


def scores_against_texts(parts: list[tuple[NDArray, NDArray, NDArray]], text_M: NDArray) -> NDArray[np.float32]:
    """Scores q×M of a few images against texts, as retrieval ranks them.

    Args: parts: per section q×D image vectors, N×D text vectors, N flags of who has a text; any scale. text_M: rows
      of the texts to score.
    """
    return np.concatenate(list(_blocks([(_unit(image), _unit(text), has) for image, text, has in parts], text_M)))


class Places(NamedTuple):
    """Where the best-scored right candidate of each of Q queries stands.

    above_Q: wrong candidates with a higher score. tied_Q, right_Q: wrong and right candidates with the same score.
    """

    above_Q: NDArray[np.int64]
    tied_Q: NDArray[np.int64]
    right_Q: NDArray[np.int64]

    def ranks(self) -> NDArray[np.float64]:
        """Expected rank of the first right candidate; 1 is best."""
        return 1.0 + self.above_Q + self.tied_Q / (self.right_Q + 1.0)

    def hits(self, k: int) -> NDArray[np.float64]:
        """Probability that a right candidate is among the first `k`."""
        triples, query_T = np.unique(np.stack(self), axis=1, return_inverse=True)
        hit_T = [chance_of_hit(int(r), int(t + r), int(k - a)) if a < k else 0.0 for a, t, r in triples.T]
        return np.asarray(hit_T)[query_T.reshape(-1)]


def image_to_text_places(blocks: Iterator[NDArray], own_N: NDArray) -> Places:
    """Places of each image's own text among all texts.

    Args: blocks: consecutive score blocks q×M. own_N: column of each image's text.
    """
    above, tied, start = [], [], 0
    for score_qxM in blocks:
        own_q = own_N[start : start + len(score_qxM)]
        start += len(score_qxM)
        own_score_qx1 = np.take_along_axis(score_qxM, own_q[:, None], axis=1)
        above.append(np.sum(score_qxM > own_score_qx1, axis=1))
        tied.append(np.sum(score_qxM == own_score_qx1, axis=1) - 1)
    return Places(np.concatenate(above), np.concatenate(tied), np.ones(len(own_N), np.int64))


def text_to_image_places(blocks: Iterator[NDArray], own_N: NDArray, texts: int) -> Places:
    """Places of the best image that carries the text among all images, for each text.

    Args: blocks: consecutive score blocks q×M. own_N: column of each image's text. texts: M.
    """
    score_NxM = np.concatenate(list(blocks))
    places = np.empty((3, texts), np.int64)
    for m in range(texts):
        score_N, mine_N = score_NxM[:, m], own_N == m
        best = score_N[mine_N].max()
        places[:, m] = (
            np.sum(score_N[~mine_N] > best),
            np.sum(score_N[~mine_N] == best),
            np.sum(score_N[mine_N] == best),
        )
    return Places(*places)


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


def _not_finite(vectors: list[NDArray]) -> int:
    """Rows that are not finite in any of several N×D arrays."""
    return int(np.sum(~np.all([np.all(np.isfinite(x_NxD), axis=1) for x_NxD in vectors], axis=0)))


def _unit(x_NxD: NDArray) -> NDArray[np.float64]:
    x_NxD = np.asarray(x_NxD, np.float64)
    with np.errstate(invalid="ignore"):
        return x_NxD / np.maximum(np.linalg.norm(x_NxD, axis=1, keepdims=True), 1e-12)
