"""The clinical prior and its masses, with numbers worked out by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from medvlp_jax.losses import clinical_prior as t
from medvlp_jax.losses import contrastive as c


@pytest.fixture
def reports():
    return np.random.default_rng(0).normal(size=(10, 32)).astype(np.float32)


def reference_prior(reports, kernel, ratio=0.2):
    correlation = np.maximum(np.corrcoef(reports.astype(np.float64)), 0)
    np.fill_diagonal(correlation, 0)
    return {
        "exp": 1 - np.exp(-ratio * correlation),
        "gau": np.exp(-(correlation**2) / 2) / np.sqrt(2 * np.pi),
        "lap": np.exp(-np.abs(correlation)) / 2,
        "sigmoid": 1 / (1 + np.exp(-correlation)),
    }[kernel]


@pytest.mark.parametrize("kernel", list(t.KERNELS))
def test_kernels_equal_float64(reports, kernel):
    got = t.clinical_prior(jnp.asarray(reports), kernel=kernel, ratio=0.2)
    np.testing.assert_allclose(got, reference_prior(reports, kernel), atol=1e-6)


@pytest.mark.parametrize(
    ("kernel", "at_zero", "at_one"),
    [("exp", 0.0, 0.181269), ("gau", 0.3989, 0.2420), ("lap", 0.5, 0.1839), ("sigmoid", 0.5, 0.7311)],
)
def test_kernels_at_the_ends(kernel, at_zero, at_one):
    ends = t.KERNELS[kernel](jnp.array([0.0, 1.0]), 0.2)
    np.testing.assert_allclose(ends, [at_zero, at_one], atol=5e-5)


def test_constant_and_missing_rows_correlate_with_nothing(reports):
    reports[3] = 7.7
    valid = np.ones(10, bool)
    valid[5] = False
    prior = np.asarray(t.clinical_prior(jnp.asarray(reports), valid_B=jnp.asarray(valid)))
    assert np.all(np.isfinite(prior))
    assert np.all(prior[[3, 5]] == 0)
    assert np.all(prior[:, [3, 5]] == 0)
    assert np.any(prior > 0)


def correlated(batch, correlation):
    """Vectors of which any two correlate so: a common part and a part of their own."""
    rng = np.random.default_rng(0)
    parts = np.linalg.qr(rng.normal(size=(2 * batch, batch + 1)))[0].T
    parts -= parts.mean(axis=1, keepdims=True)
    parts = np.linalg.qr(parts.T)[0].T
    return jnp.asarray(np.sqrt(correlation) * parts[:1] + np.sqrt(1 - correlation) * parts[1:], jnp.float32)


def row_mass(reports, **rule):
    return np.asarray(jnp.sum(t.prior_targets(reports, **rule).whole().row, axis=1))


def test_row_mass_of_the_released_recipe():
    reports = correlated(128, 0.9)
    for temperature, mass in ((0.07, 2.464), (0.2, 5.184)):
        np.testing.assert_allclose(row_mass(reports, temperature=temperature), mass, atol=1e-3)


def test_loss_with_identical_reports():
    x = jnp.ones((4, 3))
    targets = t.prior_targets(jnp.tile(jnp.arange(5.0), (4, 1)), temperature=0.07)
    assert float(c.contrastive(x, x, temperature=0.07, targets=targets)) == pytest.approx(2.87813, abs=2e-5)


def test_targets_hold_the_prior(reports):
    prior = t.clinical_prior(jnp.asarray(reports), kernel="lap")
    targets = t.prior_targets(jnp.asarray(reports), kernel="lap", temperature=0.2).whole()
    np.testing.assert_allclose(targets.row, np.eye(10) + 0.2 * prior, atol=1e-6)
    np.testing.assert_array_equal(targets.row, targets.column)


def test_batch_invariant_mass_keeps_the_row_mass_at_any_batch():
    def mass(batch, rule):
        return float(row_mass(correlated(batch, 0.9), temperature=0.07, mass=rule)[0])

    assert mass(128, "batch_invariant") == pytest.approx(mass(128, "released"), rel=1e-6)
    assert mass(1024, "batch_invariant") == pytest.approx(mass(128, "released"), rel=1e-5)
    assert mass(1024, "released") > 4 * mass(128, "released")
    assert mass(64, "row") == pytest.approx(1.0, rel=1e-6)


def test_invariant_mass_counts_valid_examples_only(reports):
    valid = jnp.arange(10) < 6
    rule = {"temperature": 0.07, "mass": "batch_invariant"}
    whole = t.prior_targets(jnp.asarray(reports), valid_B=valid, **rule).whole().row
    part = t.prior_targets(jnp.asarray(reports[:6]), **rule).whole().row
    np.testing.assert_allclose(whole[:6, :6], part, rtol=1e-6)


def test_centring_takes_out_what_all_valid_reports_share(reports):
    valid = np.arange(10) < 6
    common = np.random.default_rng(1).normal(size=reports.shape[1]) * 20
    shifted = np.where(valid[:, None], reports + common, 50.0)
    near_one = t.clinical_prior(jnp.asarray(shifted), valid_B=jnp.asarray(valid))[:6, :6]
    assert float(near_one[~np.eye(6, dtype=bool)].min()) > 0.17
    got = t.clinical_prior(jnp.asarray(shifted), valid_B=jnp.asarray(valid), centre=True)[:6, :6]
    centred = reports[:6] - reports[:6].mean(axis=0)
    expected = 1 - np.exp(-0.2 * np.maximum(np.corrcoef(centred.astype(np.float64)), 0))
    np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_unknown_names_list_the_choices(reports):
    with pytest.raises(ValueError, match="exp, gau, lap, sigmoid"):
        t.clinical_prior(jnp.asarray(reports), kernel="cosine")
    with pytest.raises(ValueError, match="released, batch_invariant, row"):
        t.prior_targets(jnp.asarray(reports), temperature=0.1, mass="global")
