"""Image to report retrieval and back: recall and class precision at K, median rank, beside what guessing would reach.

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
from medvlp_jax.evaluators.scores import Result, Score, mean_interval, percentile_interval, resampling_weights
from medvlp_jax.evaluators.truth import single_class
from medvlp_jax.heatmap import unit

CUTOFFS = (1, 5, 10)
BLOCK = 1024  # queries scored at a time
DECIMALS = 6  # of a cosine: equal vectors tie, whatever the order of a sum
PROTOCOL = (
    "Cosine of an image (one evaluation view) with each distinct text of the split; `report` takes the mean "
    "cosine over the sections that a text has. R@K, percent: an image must find its own text among its first K "
    "(exact match); a text may find any image that carries it, so several images of a study and studies with the "
    "same words are all right. Ties count in expectation. P@K, percent: share of the first K texts whose image "
    "has the same single finding, over images with exactly one finding or none (Lung Opacity, Enlarged "
    "Cardiomediastinum and devices do not count); one image, the first, stands for a text. Intervals: bootstrap "
    "over patients (over texts, for text to image)."
)


def run(context: Context) -> Result:
    """Scores per text section that images are aligned with, and for `report`: all sections of a study together.

    For each section, with the prefix `retrieval/<section>/`: `<direction>_R@{1,5,10}` in percent and
    `<direction>_median_rank`, for the directions `image_to_text` and `text_to_image`; `image_to_text_P@{1,5,10}`;
    `images` and `texts`, the sizes of the pools; `not_finite`, the number of images and texts whose embedding is not
    finite, when there are any. Sections without two texts are skipped.
    """
    features = context.features(context.split)
    fields, skipped = features.fields, {}
    has = {s: fields[f"has_{s}"].astype(bool) for s in features.image}
    text_id = {s: fields[f"{s}_hash"] for s in features.image}
    pools = {s: ([(features.image[s], features.text[s], has[s])], text_id[s]) for s in features.image}
    if len(pools) > 1:
        # A report is the pair of its sections: two studies share it when they share both.
        ids_SxN = np.stack([np.where(has[s], text_id[s], -1) for s in pools])
        _, report_id = np.unique(ids_SxN, axis=1, return_inverse=True)
        pools["report"] = ([(features.image[s], features.text[s], has[s]) for s in has], report_id.reshape(-1))
    patient_N = features.patient_N
    class_N = single_class(fields["labels"]) if "labels" in fields else np.full(len(patient_N), -1)
    scores = []
    for name, (parts, ids) in pools.items():
        added = _section(name, parts, ids, patient_N, class_N, context.settings.resamples)
        if not added:
            skipped[name] = "fewer than two texts"
        scores += added
    return Result(scores, PROTOCOL, skipped)


def _section(
    name: str,
    parts: list[tuple[NDArray, NDArray, NDArray]],
    text_id_N: NDArray,
    patient_N: NDArray,
    class_N: NDArray,
    resamples: int,
) -> list[Score]:
    keep_N = np.any([has_N for _, _, has_N in parts], axis=0)
    _, first_M, own_n = np.unique(text_id_N[keep_N], return_index=True, return_inverse=True)
    if len(first_M) < 2:
        return []
    parts = [
        (unit(image[keep_N], np.float64), unit(text[keep_N], np.float64), has[keep_N]) for image, text, has in parts
    ]
    prefix = f"retrieval/{name}/"
    images, texts = len(own_n), len(first_M)
    places = {
        "image_to_text": image_to_text_places(_blocks(parts, first_M), own_n),
        "text_to_image": text_to_image_places(_blocks(parts, first_M), own_n, texts),
    }
    chances = {
        "image_to_text": {k: min(k / texts, 1.0) for k in CUTOFFS},
        "text_to_image": {k: _mean_chance(np.bincount(own_n), images, k) for k in CUTOFFS},
    }
    weights = {
        "image_to_text": resampling_weights(patient_N[keep_N], resamples),
        "text_to_image": resampling_weights(np.arange(texts), resamples),
    }
    scores = [Score(f"{prefix}images", float(images), images), Score(f"{prefix}texts", float(texts), texts)]
    broken = _not_finite([image for image, _, _ in parts]) + _not_finite([text[first_M] for _, text, _ in parts])
    if broken:
        scores.append(Score(f"{prefix}not_finite", float(broken), images + texts))
    for direction, place in places.items():
        count = len(place.above_Q)
        for k in CUTOFFS:
            hit_Q = 100.0 * place.hits(k)
            interval = mean_interval(hit_Q, weights[direction])
            chance = 100.0 * chances[direction][k]
            scores.append(Score(f"{prefix}{direction}_R@{k}", float(np.mean(hit_Q)), count, interval, chance))
        rank_Q = place.ranks()
        interval = percentile_interval(_weighted_medians(rank_Q, weights[direction]))
        scores.append(Score(f"{prefix}{direction}_median_rank", float(np.median(rank_Q)), count, interval))
    return scores + _class_precision(prefix, parts, first_M, class_N[keep_N], weights["image_to_text"])


def _class_precision(prefix: str, parts: list, first_M: NDArray, class_n: NDArray, weight_Rxn: NDArray) -> list[Score]:
    """P@K over images with one finding or none, against the texts of such images."""
    texts_m = np.flatnonzero(class_n[first_M] >= 0)
    query_n = class_n >= 0
    if len(texts_m) < max(CUTOFFS) or not query_n.any():
        return []
    candidate_m = class_n[first_M][texts_m]
    right_K: dict[int, list[NDArray]] = {k: [] for k in CUTOFFS}
    start = 0
    for score_qxM in _blocks(parts, first_M):
        rows = slice(start, start + len(score_qxM))
        start += len(score_qxM)
        score_qxm, wanted_q = score_qxM[query_n[rows]][:, texts_m], class_n[rows][query_n[rows]]
        same_qxm = candidate_m[None] == wanted_q[:, None]
        for k in CUTOFFS:
            right_K[k].append(_expected_share(score_qxm, same_qxm, k))
    chance = float(np.mean([np.mean(candidate_m == c) for c in class_n[query_n]]))
    scores = []
    for k in CUTOFFS:
        share_q = 100.0 * np.concatenate(right_K[k])
        interval = mean_interval(share_q, weight_Rxn[:, query_n])
        scores.append(
            Score(f"{prefix}image_to_text_P@{k}", float(share_q.mean()), len(share_q), interval, 100.0 * chance)
        )
    return scores


def _expected_share(score_qxm: NDArray, right_qxm: NDArray, k: int) -> NDArray[np.float64]:
    """Share of right candidates among the first k, ties in random order."""
    if not len(score_qxm):
        return np.zeros(0)
    kth_qx1 = np.partition(score_qxm, -k, axis=1)[:, -k][:, None]
    above_qxm, tied_qxm = score_qxm > kth_qx1, score_qxm == kth_qx1
    open_q = k - above_qxm.sum(axis=1)
    tied_right_q = (tied_qxm & right_qxm).sum(axis=1) / tied_qxm.sum(axis=1)
    return ((above_qxm & right_qxm).sum(axis=1) + open_q * tied_right_q) / k


def _mean_chance(count_M: NDArray, images: int, k: int) -> float:
    return float(np.mean([chance_of_hit(int(c), images, k) for c in count_M]))


def _weighted_medians(value_N: NDArray, weight_RxN: NDArray) -> NDArray[np.float64]:
    """Median of each bootstrap resample."""
    order = np.argsort(value_N)
    cumulative_RxN = np.cumsum(weight_RxN[:, order], axis=1)
    total_Rx1 = cumulative_RxN[:, -1:]
    low_R = np.argmax(cumulative_RxN >= total_Rx1 / 2, axis=1)
    high_R = np.argmax(cumulative_RxN > total_Rx1 / 2, axis=1)
    return (value_N[order][low_R] + value_N[order][high_R]) / 2


def _blocks(parts: list[tuple[NDArray, NDArray, NDArray]], first_M: NDArray) -> Iterator[NDArray]:
    """Scores of blocks of images against the distinct texts: the mean cosine over the sections that a text has."""
    has_SxM = np.stack([has[first_M] for _, _, has in parts]).astype(np.float32)
    for start in range(0, len(parts[0][0]), BLOCK):
        rows = slice(start, start + BLOCK)
        total_qxM = sum(
            np.where(has_M > 0, image[rows] @ text[first_M].T, 0.0)
            for (image, text, _), has_M in zip(parts, has_SxM, strict=True)
        )
        count_M = has_SxM.sum(axis=0)  # 0: a text without any section, which is behind all others
        score_qxM = np.round(total_qxM / np.maximum(count_M, 1), DECIMALS)
        yield np.where((count_M > 0) & np.isfinite(score_qxM), score_qxM, -np.inf).astype(np.float32)


def scores_against_texts(parts: list[tuple[NDArray, NDArray, NDArray]], text_M: NDArray) -> NDArray[np.float32]:
    """Scores q×M of a few images against texts, as retrieval ranks them.

    Args: parts: per section q×D image vectors, N×D text vectors, N flags of who has a text; any scale. text_M: rows
      of the texts to score.
    """
    return np.concatenate(
        list(_blocks([(unit(image, np.float64), unit(text, np.float64), has) for image, text, has in parts], text_M))
    )


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
