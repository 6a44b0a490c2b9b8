"""Which test images a report shows: typical ones, misses and a false alarm, by a rule that looks at no picture."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medvlp_jax.data.labels import CHEXPERT_LABELS, PRESENT, UNCERTAIN

COUNT = 12
MISSES = 3
RULE = (
    "Chosen by rule, not by eye. For each of the most frequent findings the image with the median score among those "
    "that have it; then the lowest-scored images that have a finding, one per finding; then the normal image that "
    "scores highest for some finding."
)
_NORMAL = CHEXPERT_LABELS.index("No Finding")


class Pick(NamedTuple):
    """row: of the pool. finding: place in CHEXPERT_LABELS that it was chosen for, or None. kind: why, for people."""

    row: int
    finding: int | None
    kind: str


def percentiles(score_NxF: NDArray) -> NDArray[np.float64]:
    """Share of the other rows with a lower score, ties counted half, 0..100 per column; NaN scores stand lowest."""
    score_NxF = np.nan_to_num(np.asarray(score_NxF, np.float64), nan=-np.inf)
    ordered_NxF = np.sort(score_NxF, axis=0)
    others = max(len(score_NxF) - 1, 1)
    columns = []
    for score_N, ordered_N in zip(score_NxF.T, ordered_NxF.T, strict=True):
        lower_N = np.searchsorted(ordered_N, score_N, side="left")
        upto_N = np.searchsorted(ordered_N, score_N, side="right")
        columns.append(100.0 * (lower_N + (upto_N - lower_N - 1) / 2) / others)
    return np.stack(columns, axis=1)


def pick(percentile_NxF: NDArray, labels_NxF: NDArray, allowed_N: NDArray[np.bool_], count: int = COUNT) -> list[Pick]:
    """About `count` rows among the allowed ones, all different.

    Args: percentile_NxF: of the zero-shot score of each finding. labels_NxF: states of CHEXPERT_LABELS.
    """
    present_NxF = (labels_NxF == PRESENT) & allowed_N[:, None]
    by_frequency = np.argsort(-present_NxF.sum(axis=0), kind="stable")
    frequent = [int(f) for f in by_frequency if present_NxF[:, f].any()]
    picks: list[Pick] = []

    def add(rows: Sequence[int], finding: int | None, kind: str) -> bool:
        taken = {p.row for p in picks}
        row = next((int(row) for row in rows if row not in taken), None)
        if row is not None and len(picks) < count:
            picks.append(Pick(row, finding, kind))
        return row is not None

    for f in frequent[: max(count - MISSES - 1, 1)]:
        rows = np.flatnonzero(present_NxF[:, f])
        away = np.abs(percentile_NxF[rows, f] - np.median(percentile_NxF[rows, f]))
        add(rows[np.argsort(away, kind="stable")], f, "typical")
    worst = []
    for f in frequent:
        rows = np.flatnonzero(present_NxF[:, f])
        rows = rows[np.argsort(percentile_NxF[rows, f], kind="stable")]
        if f != _NORMAL and percentile_NxF[rows[0], f] < 50:
            worst.append((percentile_NxF[rows[0], f], f, rows))
    for _, f, rows in sorted(worst, key=lambda item: item[:2])[:MISSES]:
        add(rows, f, "missed")
    abnormal_N = ((labels_NxF == PRESENT) | (labels_NxF == UNCERTAIN)).sum(axis=1) > present_NxF[:, _NORMAL]
    rows = np.flatnonzero(present_NxF[:, _NORMAL] & ~abnormal_N)
    if len(rows):
        others = [f for f in frequent if f != _NORMAL]
        highest = percentile_NxF[np.ix_(rows, others)] if others else np.zeros((len(rows), 0))
        if highest.size:
            rows = rows[np.argsort(-highest.max(axis=1), kind="stable")]
            add(rows, others[int(np.argmax(percentile_NxF[rows[0], others]))], "false alarm")
    allowed = np.flatnonzero(allowed_N)
    if len(picks) < count and len(allowed):
        spread = allowed[np.unique(np.linspace(0, len(allowed) - 1, count).astype(int))]
        for row in spread:
            add([row], None, "evenly spaced")
    return picks
