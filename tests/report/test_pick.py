"""Which images are shown: typical ones, misses, a false alarm; the same ones every time."""

import numpy as np
import pytest

from medvlp_jax.data.labels import CHEXPERT_LABELS
from medvlp_jax.report.pick import COUNT, Pick, percentiles, pick

NORMAL, EDEMA, EFFUSION = (CHEXPERT_LABELS.index(name) for name in ("No Finding", "Edema", "Pleural Effusion"))


def test_percentiles_against_counting():
    score = np.random.default_rng(0).integers(0, 6, size=(30, 3)).astype(float)
    for n, f in np.ndindex(score.shape):
        others = np.delete(score[:, f], n)
        expected = 100 * np.mean((others < score[n, f]) + 0.5 * (others == score[n, f]))
        assert percentiles(score)[n, f] == pytest.approx(expected)
    assert percentiles(np.array([[np.nan], [1.0], [2.0]]))[:, 0].tolist() == [0, 50, 100]
    assert percentiles(np.array([[3.0]])).tolist() == [[0.0]]


@pytest.fixture
def split():
    """Eleven images: rows 0..4 have edema, 5..7 effusion, 8..10 are normal. Scores rise with the row."""
    labels = np.full((11, 14), -2)
    labels[:5, EDEMA], labels[5:8, EFFUSION], labels[8:, NORMAL] = 1, 1, 1
    score = np.tile(np.arange(11.0)[:, None], (1, 14))
    return percentiles(score), labels


def test_typical_missed_and_false_alarm(split):
    percentile, labels = split
    picks = pick(percentile, labels, np.ones(11, bool))
    assert picks[:5] == [
        Pick(2, EDEMA, "typical"),  # the middle of five
        Pick(9, NORMAL, "typical"),
        Pick(6, EFFUSION, "typical"),
        Pick(0, EDEMA, "missed"),  # effusion scores above the middle: nothing missed
        Pick(10, EDEMA, "false alarm"),
    ]
    assert {p.kind for p in picks[5:]} == {"evenly spaced"}
    assert len({p.row for p in picks}) == len(picks)
    assert picks == pick(percentile, labels, np.ones(11, bool))


def test_rows_that_are_not_allowed_are_not_picked(split):
    percentile, labels = split
    allowed = np.arange(11) % 2 == 1
    picks = pick(percentile, labels, allowed)
    assert all(allowed[p.row] for p in picks)
    assert pick(percentile, labels, np.zeros(11, bool)) == []


def test_images_without_labels_are_taken_evenly():
    picks = pick(np.zeros((100, 14)), np.full((100, 14), -2), np.ones(100, bool))
    assert [p.row for p in picks] == np.linspace(0, 99, COUNT).astype(int).tolist()
    assert all(p.finding is None for p in picks)


def test_never_more_than_asked_for():
    rng = np.random.default_rng(1)
    labels = rng.choice([-2, 0, 1], size=(200, 14))
    picks = pick(percentiles(rng.random((200, 14))), labels, np.ones(200, bool))
    assert len(picks) == COUNT
    assert sum(p.kind == "missed" for p in picks) == 3
