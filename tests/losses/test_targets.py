"""The clinical prior and its masses, with numbers worked out by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from medvlp_jax.losses import contrastive as c
from medvlp_jax.losses import targets as t


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


def test_row_mass_of_the_released_recipe():
    prior = jnp.full((128, 128), 1 - np.exp(-0.2 * 0.9)) * (1 - jnp.eye(128))
    for temperature, mass in ((0.07, 2.464), (0.2, 5.184)):
        targets = t.prior_targets(prior, temperature=temperature)
        np.testing.assert_allclose(jnp.sum(targets, axis=1), mass, atol=1e-3)


def test_loss_with_identical_reports():
    x = jnp.ones((4, 3))
    prior = t.clinical_prior(jnp.tile(jnp.arange(5.0), (4, 1)))
    targets = t.prior_targets(prior, temperature=0.07)
    assert float(c.contrastive(x, x, temperature=0.07, targets_BxB=targets)) == pytest.approx(2.87813, abs=2e-5)


def test_batch_invariant_mass_keeps_the_row_mass_at_any_batch():
    def mass(batch, rule):
        prior = jnp.full((batch, batch), 0.16473) * (1 - jnp.eye(batch))
        return float(jnp.sum(t.prior_targets(prior, temperature=0.07, mass=rule), axis=1)[0])

    assert mass(128, "batch_invariant") == pytest.approx(mass(128, "released"), rel=1e-6)
    assert mass(1024, "batch_invariant") == pytest.approx(mass(128, "released"), rel=1e-5)
    assert mass(1024, "released") > 4 * mass(128, "released")
    assert mass(64, "row") == pytest.approx(1.0, rel=1e-6)


def test_invariant_mass_counts_valid_examples_only(reports):
    valid = jnp.arange(10) < 6
    prior = t.clinical_prior(jnp.asarray(reports), valid_B=valid)
    whole = t.prior_targets(prior, temperature=0.07, mass="batch_invariant", valid_B=valid)
    part = t.prior_targets(prior[:6, :6], temperature=0.07, mass="batch_invariant")
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
        t.prior_targets(jnp.eye(3), temperature=0.1, mass="global")
