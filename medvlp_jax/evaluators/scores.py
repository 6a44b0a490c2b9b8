"""Scores with what makes them readable: how many examples, an interval, what guessing gives."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
Interval = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Score:
    """One number of a protocol.

    name: `<protocol>/<what>/<of what>`. interval: 95 %; over seeds when `seeds` is given, else by bootstrap.
    count: examples behind it. chance: what guessing gives. variant: `as_published` or `corrected` where the two differ.
    """

    name: str
    value: float
    count: int
    interval: Interval | None = None
    chance: float | None = None
    seeds: int | None = None
    variant: str = ""
    raw_pixels: float | None = None
    raw_interval: Interval | None = None


class Result(NamedTuple):
    """What an evaluator returns: scores, one paragraph on how they were made, what was left out and why.

    files: JSON to keep beside the scores, by file name.
    """

    scores: list[Score]
    protocol: str = ""
    skipped: Mapping[str, str] = {}
    files: Mapping[str, Any] = {}


def as_json(score: Score) -> dict[str, Any]:
    """Plain types; numbers that are not finite become None."""
    fields = dataclasses.asdict(score) | {"protocol": score.name.partition("/")[0]}
    return {key: _finite(value) for key, value in fields.items()}


def _finite(value: Any) -> Any:
    if isinstance(value, tuple):
        return None if any(_finite(part) is None for part in value) else [float(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ---- bootstrap -----------------------------------------------------------


def resampling_weights(group_N: NDArray, resamples: int = RESAMPLES) -> NDArray[np.float32]:
    """How often each example stands in each bootstrap resample: resamples×N.

    Whole groups (patients) are drawn with replacement; resample i uses seed i, as in CheXzero (Tiu et al. 2022).
    """
    _, index_N = np.unique(np.asarray(group_N), return_inverse=True)
    groups = int(index_N.max()) + 1 if len(index_N) else 0
    weight_RxN = np.zeros((resamples, len(index_N)), np.float32)
    for i in range(resamples if groups else 0):
        drawn = np.random.default_rng(i).integers(0, groups, groups)
        weight_RxN[i] = np.bincount(drawn, minlength=groups)[index_N]
    return weight_RxN


def percentile_interval(value_R: NDArray) -> Interval | None:
    """95 % interval of bootstrap values: the sorted ones at int(.025 n) - 1 and int(.975 n) - 1 of the n finite ones.

    None with fewer than 40 finite values. Source: CheXzero (rajpurkarlab/CheXzero), its bootstrap, which does not guard
    against resamples of one class; here they are NaN and left out.
    """
    finite = np.sort(value_R[np.isfinite(value_R)])
    if len(finite) < 40:
        return None
    return float(finite[int(0.025 * len(finite)) - 1]), float(finite[int(0.975 * len(finite)) - 1])


def mean_interval(value_N: NDArray, weight_RxN: NDArray) -> Interval | None:
    """Bootstrap interval of a mean."""
    with np.errstate(invalid="ignore"):
        return percentile_interval(weight_RxN @ np.asarray(value_N, np.float64) / weight_RxN.sum(axis=1))


def seeds_interval(value_S: Sequence[float]) -> Interval | None:
    """Student's 95 % interval of the mean over seeds; None for a single one."""
    from scipy.stats import t

    value_S = np.asarray([v for v in value_S if math.isfinite(v)], np.float64)
    if len(value_S) < 2:
        return None
    half = float(t.ppf(0.975, len(value_S) - 1) * value_S.std(ddof=1) / math.sqrt(len(value_S)))
    return float(value_S.mean()) - half, float(value_S.mean()) + half


# ---- metrics -----------------------------------------------------------


def auc(truth_N: NDArray, score_N: NDArray, weight_RxN: NDArray | None = None) -> NDArray[np.float64]:
    """Area under the ROC curve, ties counted half; one value, or one per row of weights.

    NaN where only one class has weight, or where a score is NaN.
    """
    truth_N, score_N = np.asarray(truth_N, bool), np.asarray(score_N, np.float64)
    single = weight_RxN is None
    weight_RxN = np.ones((1, len(truth_N))) if single else np.asarray(weight_RxN, np.float64)
    if not len(truth_N) or np.isnan(score_N).any():
        area_R = np.full(len(weight_RxN), np.nan)
        return area_R[0] if single else area_R
    lowest_first_n = np.flatnonzero(~truth_N)
    lowest_first_n = lowest_first_n[np.argsort(score_N[lowest_first_n], kind="stable")]
    negative_n, negative_Rxn = score_N[lowest_first_n], weight_RxN[:, lowest_first_n]
    positive_Rxp = weight_RxN[:, truth_N]
    # Weight of the negatives below each positive, and of those that tie with it.
    cumulative_Rxn = np.concatenate([np.zeros((len(weight_RxN), 1)), np.cumsum(negative_Rxn, axis=1)], axis=1)
    below_p = np.searchsorted(negative_n, score_N[truth_N], side="left")
    upto_p = np.searchsorted(negative_n, score_N[truth_N], side="right")
    with np.errstate(invalid="ignore", divide="ignore"):
        halves_R = [np.einsum("rp,rp->r", positive_Rxp, cumulative_Rxn[:, at_p]) for at_p in (below_p, upto_p)]
        area_R = sum(halves_R) / 2 / (positive_Rxp.sum(axis=1) * negative_Rxn.sum(axis=1))
    return area_R[0] if single else area_R


def f1_and_mcc(
    truth_N: NDArray, predicted_N: NDArray, weight_RxN: NDArray | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """F1 of the positive class and Matthews' correlation; scalars, or one per row of weights. 0 where undefined."""
    truth_N, predicted_N = np.asarray(truth_N, bool), np.asarray(predicted_N, bool)
    single = weight_RxN is None
    weight_RxN = np.ones((1, len(truth_N))) if single else np.asarray(weight_RxN, np.float64)
    tp, fp = weight_RxN @ (truth_N & predicted_N), weight_RxN @ (~truth_N & predicted_N)
    fn, tn = weight_RxN @ (truth_N & ~predicted_N), weight_RxN @ (~truth_N & ~predicted_N)
    with np.errstate(invalid="ignore", divide="ignore"):
        f1 = np.nan_to_num(2 * tp / (2 * tp + fp + fn))
        mcc = np.nan_to_num((tp * tn - fp * fn) / np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))
    return (f1[0], mcc[0]) if single else (f1, mcc)


def best_threshold(truth_N: NDArray, score_N: NDArray, measure: str = "mcc") -> float:
    """The score from which on to call an example positive: greatest MCC (`mcc`) or F1 (`f1`), the lowest of ties."""
    candidates_T = np.unique(np.asarray(score_N, np.float64))
    if len(candidates_T) > 1001:
        candidates_T = np.quantile(candidates_T, np.linspace(0, 1, 1001))
    truth_N = np.asarray(truth_N, bool)
    order = np.argsort(score_N)
    total, positives = len(truth_N), int(truth_N.sum())
    below_T = np.searchsorted(np.asarray(score_N)[order], candidates_T, side="left")
    positives_below_T = np.concatenate([[0], np.cumsum(truth_N[order])])[below_T]
    tp, fn = positives - positives_below_T, positives_below_T
    fp = (total - below_T) - tp
    tn = below_T - fn
    with np.errstate(invalid="ignore", divide="ignore"):
        if measure == "f1":
            value_T = np.nan_to_num(2 * tp / (2 * tp + fp + fn))
        else:
            root = np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn), dtype=np.float64)
            value_T = np.nan_to_num((tp * tn - fp * fn) / root)
    return float(candidates_T[int(np.argmax(value_T))])


class Measured(NamedTuple):
    """A value, the values in the bootstrap resamples, and the number of examples behind it."""

    value: float
    resampled_R: NDArray
    count: int


def measured_auc(truth_N: NDArray, score_N: NDArray, weight_RxN: NDArray) -> Measured:
    """`auc` as it is and in the resamples."""
    return Measured(float(auc(truth_N, score_N)), auc(truth_N, score_N, weight_RxN), len(truth_N))


def with_mean(
    prefix: str,
    found: Mapping[str, Measured],
    over: Sequence[str],
    *,
    chance: float | None = None,
    variant: str = "",
) -> list[Score]:
    """`<prefix>/mean` over some findings and `<prefix>/<finding>` of all, with bootstrap intervals."""
    value = float(np.mean([found[name].value for name in over]))
    resampled_R = np.mean([found[name].resampled_R for name in over], axis=0)
    together = {"mean": Measured(value, resampled_R, max(m.count for m in found.values())), **found}
    return [
        Score(f"{prefix}/{name}", m.value, m.count, percentile_interval(m.resampled_R), chance, variant=variant)
        for name, m in together.items()
    ]
