"""LoVT's local terms against their formula in float64, the spatial targets' golden facts, reports of one sentence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import slopes

from medvlp_jax.losses.contrastive import contrastive
from medvlp_jax.losses.sentence_region import sentence_region_terms, spatial_targets

B, R, M, D = 4, 6, 3, 5
RNG = np.random.default_rng(0)
TARGETS = spatial_targets(2, 3)
REGIONS, REGIONS_SEEN = RNG.normal(size=(2, B, R, D)).astype(np.float32)
SENTENCES, SENTENCES_SEEN = RNG.normal(size=(2, B, M, D)).astype(np.float32)
MASK = np.arange(M) < np.asarray([3, 1, 2, 0])[:, None]
WEIGHTS = RNG.random((B, R)).astype(np.float32), RNG.random((B, M)).astype(np.float32)


def terms(*arrays, mask=MASK, **options):
    return jax.jit(lambda *x: sentence_region_terms(*x, mask, *WEIGHTS, target_RxR=TARGETS, **options))(*arrays)


def definition(regions, regions_seen, sentences, sentences_seen, mask=MASK):
    totals = []
    for i in np.flatnonzero(mask.any(axis=1)):
        total = 0.0
        sides = (
            (regions[i], regions_seen[i], WEIGHTS[0][i], TARGETS.astype(np.float64)),
            (sentences[i][mask[i]], sentences_seen[i][mask[i]], WEIGHTS[1][i][mask[i]], np.eye(mask[i].sum())),
        )
        for a, b, weight, target in sides:
            scores = slopes.unit(a) @ slopes.unit(b).T / 0.3
            weight = weight.astype(np.float64) / weight.sum(dtype=np.float64)
            total += sum(np.sum(weight * slopes.cross_entropy(s, target)) for s in (scores, scores.T))
        totals.append(total)
    return np.mean(totals)


def test_terms_equal_float64():
    slopes.assert_equal(
        lambda *x: sum(sentence_region_terms(*x, MASK, *WEIGHTS, target_RxR=TARGETS)),
        definition,
        REGIONS,
        REGIONS_SEEN,
        SENTENCES,
        SENTENCES_SEEN,
    )


def test_one_sentence_costs_exactly_nothing():
    one = np.arange(M) < np.ones((B, 1))
    got = terms(REGIONS, REGIONS_SEEN, SENTENCES, SENTENCES_SEEN, mask=one)
    assert float(got.sentence_to_seen) == 0.0
    assert float(got.seen_to_sentence) == 0.0
    assert float(got.region_to_seen) > 0


def test_no_sentences_at_all_is_zero_not_nan():
    of = jax.jit(
        jax.value_and_grad(
            lambda x: sum(
                sentence_region_terms(
                    x, x, SENTENCES, SENTENCES, np.zeros_like(MASK), 0 * WEIGHTS[0], 0 * WEIGHTS[1], target_RxR=TARGETS
                )
            )
        )
    )
    value, gradient = of(REGIONS)
    assert float(value) == 0.0
    assert np.all(np.asarray(gradient) == 0)


def test_spatial_targets_of_the_released_grid():
    target = spatial_targets()
    grid = target.reshape(7, 7, 7, 7)
    entropy = -np.sum(target * np.log(np.where(target > 0, target, 1)), axis=1).reshape(7, 7)
    for cell, positives, own, bits in (
        ((0, 0), 22, 0.0604, 3.0829),
        ((0, 3), 33, 0.0399, 3.4897),
        ((3, 3), 49, 0.0265, 3.8868),
        ((1, 1), 33, 0.0395, 3.4886),
    ):
        assert np.count_nonzero(grid[cell]) == positives
        assert grid[cell][cell] == pytest.approx(own, abs=6e-5)
        assert entropy[cell] == pytest.approx(bits, abs=6e-5)
    assert entropy.mean() == pytest.approx(3.5254, abs=6e-5)
    np.testing.assert_allclose(grid[0, 0, 0], [0.06041, 0.05460, 0.04936, 0.04462, 0.04033, 0, 0], atol=6e-6)
    assert grid[0, 0, 0, 1] / grid[0, 0, 0, 0] == pytest.approx(np.exp(-1 / np.sqrt(98)), rel=1e-6)
    np.testing.assert_allclose(target.sum(axis=1), 1, rtol=1e-6)
    assert not np.allclose(target, target.T)


def test_other_smoothings_have_their_names():
    uniform, none = (spatial_targets(smoothing=name) for name in ("uniform", "none"))
    np.testing.assert_array_equal(uniform > 0, spatial_targets() > 0)
    assert np.unique(uniform[0]).tolist() == [0, np.float32(1 / 22)]
    np.testing.assert_array_equal(none, np.eye(49))
    with pytest.raises(ValueError, match="exponential, uniform, none"):
        spatial_targets(smoothing="gaussian")


def test_equal_cosines_at_the_released_sizes():
    regions, sentences = np.ones((32, 49, 4), np.float32), np.ones((32, 8, 4), np.float32)
    mask = np.arange(8) < np.full((32, 1), 5)  # padded sentences change nothing
    local = jax.jit(lambda *x: sum(sentence_region_terms(*x, target_RxR=spatial_targets())))(
        regions, regions, sentences, sentences, mask, regions[..., 0], sentences[..., 0]
    )
    whole = contrastive(regions[:, 0], sentences[:, 0], temperature=0.1, directions=(0.75, 0.25))
    assert float(whole + 0.375 * local) == pytest.approx(7.59168, abs=1e-5)


def test_weights_get_no_gradient():
    def loss(weight):
        return sum(
            sentence_region_terms(
                REGIONS, REGIONS_SEEN, SENTENCES, SENTENCES_SEEN, MASK, weight, WEIGHTS[1], target_RxR=TARGETS
            )
        )

    assert np.all(np.asarray(jax.jit(jax.grad(loss))(jnp.asarray(WEIGHTS[0]))) == 0)
