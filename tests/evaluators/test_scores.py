"""Metrics against scikit-learn, weights against repeated rows, intervals against their definition."""

import numpy as np
import pytest
from sklearn import metrics

from medvlp_jax.evaluators import scores


def cases():
    rng = np.random.default_rng(0)
    for count in (2, 3, 17, 200):
        truth = rng.random(count) < 0.4
        truth[:2] = True, False
        yield truth, rng.normal(size=count)
        yield truth, rng.integers(0, 3, count).astype(float)  # ties
        yield truth, np.zeros(count)
        yield truth, truth.astype(float)


@pytest.mark.parametrize(("truth", "score"), list(cases()))
def test_auc_equals_scikit_learn(truth, score):
    assert scores.auc(truth, score) == pytest.approx(metrics.roc_auc_score(truth, score), abs=1e-12)


def test_auc_of_one_class_of_nothing_and_of_nan_is_nan():
    assert np.isnan(scores.auc([True, True], [0.1, 0.2]))
    assert np.isnan(scores.auc([False, False], [0.1, 0.2]))
    assert np.isnan(scores.auc([], []))
    assert np.isnan(scores.auc([True, False], [np.nan, 0.2]))


def test_weighted_metrics_equal_those_of_repeated_rows():
    rng = np.random.default_rng(1)
    truth, score = rng.random(30) < 0.5, rng.integers(0, 6, 30).astype(float)
    weights = rng.integers(0, 4, (25, 30))
    area = scores.auc(truth, score, weights)
    f1, mcc = scores.f1_and_mcc(truth, score > 2, weights)
    for row, weight in enumerate(weights):
        t, s = np.repeat(truth, weight), np.repeat(score, weight)
        assert area[row] == pytest.approx(metrics.roc_auc_score(t, s), abs=1e-9)
        assert f1[row] == pytest.approx(metrics.f1_score(t, s > 2), abs=1e-9)
        assert mcc[row] == pytest.approx(metrics.matthews_corrcoef(t, s > 2), abs=1e-9)


@pytest.mark.parametrize(("truth", "score"), list(cases()))
def test_f1_and_mcc_equal_scikit_learn(truth, score):
    predicted = score > np.median(score)
    f1, mcc = scores.f1_and_mcc(truth, predicted)
    assert f1 == pytest.approx(metrics.f1_score(truth, predicted, zero_division=0), abs=1e-12)
    assert mcc == pytest.approx(metrics.matthews_corrcoef(truth, predicted), abs=1e-12)


@pytest.mark.parametrize("measure", ["mcc", "f1"])
def test_best_threshold_is_the_best_of_all(measure):
    rng = np.random.default_rng(2)
    truth = rng.random(60) < 0.3
    score = truth + rng.normal(size=60).round(1)
    judge = metrics.matthews_corrcoef if measure == "mcc" else metrics.f1_score
    best = max(judge(truth, score >= t) for t in np.unique(score))
    assert judge(truth, score >= scores.best_threshold(truth, score, measure)) == pytest.approx(best)


def test_resamples_draw_whole_groups():
    groups = np.array([4, 4, 9, 9, 9, 2])
    weights = scores.resampling_weights(groups, 200)
    assert weights.shape == (200, 6)
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 2] == weights[:, 4]).all()
    assert (weights[:, 0] + weights[:, 2] + weights[:, 5] == 3).all()  # three groups drawn each time
    np.testing.assert_array_equal(weights, scores.resampling_weights(groups, 200))


def test_percentiles_are_those_of_the_source():
    values = np.random.default_rng(3).permutation(1000).astype(float)
    assert scores.percentile_interval(values) == (24, 974)
    values[:5] = np.nan  # resamples of one class are left out
    assert scores.percentile_interval(values) is not None
    assert scores.percentile_interval(np.full(1000, np.nan)) is None


def test_mean_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(4)
    weights = scores.resampling_weights(np.arange(50), 300)
    spans = [scores.mean_interval(rng.normal(size=50), weights) for _ in range(300)]
    assert 0.88 < np.mean([low < 0 < high for low, high in spans]) < 0.99


def test_seeds_interval_by_hand():
    low, high = scores.seeds_interval([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), rel=1e-5)
    assert scores.seeds_interval([1.0]) is None


def test_json_has_no_nan():
    row = scores.as_json(scores.Score("a/b", float("nan"), 3, (0.1, float("inf")), chance=0.5))
    assert row["value"] is None
    assert row["interval"] is None
    assert (row["protocol"], row["chance"], row["count"]) == ("a", 0.5, 3)
