"""MGCA's token-wise alignment against its formula in float64: weights, padding, released variants, golden facts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import slopes

from medvlp_jax.losses.token_alignment import attention_weights, token_alignment_loss, unit_contrast

B, W, P, D = 3, 5, 4, 6
RNG = np.random.default_rng(0)
WORDS, PATCHES = (RNG.normal(size=(B, n, D)).astype(np.float32) for n in (W, P))
MASK = np.arange(W) < np.asarray([5, 1, 3])[:, None]
WORD_WEIGHTS = np.where(MASK, RNG.random((B, W)), 0)
WORD_WEIGHTS = (WORD_WEIGHTS / WORD_WEIGHTS.sum(axis=1, keepdims=True)).astype(np.float32)
PATCH_WEIGHTS = RNG.dirichlet(np.ones(P), B).astype(np.float32)


def contrast(a, b, weights, keep=True):
    s, eye = a @ b.T / 0.1, np.eye(len(a))
    return np.mean([np.sum(weights * slopes.cross_entropy(x, eye, keep)) for x in (s, s.T)])


def definition(words, patches, valid=(0, 1, 2), padding_is_negative=False, normalise_seen_words=True, uniform=False):
    totals = []
    for i in valid:
        t, v, mask = slopes.unit(words[i]), slopes.unit(patches[i]), MASK[i]
        patches_seen = slopes.unit(slopes.softmax(t @ v.T / 0.1) @ v)
        words_seen = slopes.softmax(v @ t.T / 0.1, keep=mask) @ t
        words_seen = slopes.unit(words_seen) if normalise_seen_words else words_seen
        keep = True if padding_is_negative else mask
        patch_weights = np.full(P, 1 / P) if uniform else PATCH_WEIGHTS[i]
        totals.append(contrast(t, patches_seen, WORD_WEIGHTS[i], keep) + contrast(v, words_seen, patch_weights))
    return np.mean(totals)


@pytest.mark.parametrize("variant", [{}, {"padding_is_negative": True, "normalise_seen_words": False}], ids=str)
def test_loss_equals_float64(variant):
    slopes.assert_equal(
        lambda words, patches: sum(token_alignment_loss(words, patches, MASK, WORD_WEIGHTS, PATCH_WEIGHTS, **variant)),
        lambda words, patches: definition(words, patches, **variant),
        WORDS,
        PATCHES,
    )


def test_neither_padding_nor_reports_without_words_count():
    loss = jax.jit(
        jax.value_and_grad(
            lambda words, patches, mask: sum(token_alignment_loss(words, patches, mask, WORD_WEIGHTS)), argnums=(0, 1)
        )
    )
    mask = MASK.copy()
    mask[1] = False
    noise = np.where(mask[..., None], WORDS, 3.0 + np.arange(D)).astype(np.float32)
    expected = definition(WORDS.astype(float), PATCHES.astype(float), valid=(0, 2), uniform=True)
    for words in (WORDS, noise):
        value, gradients = loss(words, PATCHES, mask)
        assert float(value) == pytest.approx(expected, rel=1e-6)
        assert np.all(np.asarray(gradients[0])[~mask] == 0)
        assert all(np.all(np.isfinite(gradient)) and np.all(gradient[1] == 0) for gradient in gradients)
    value, gradients = loss(WORDS, PATCHES, np.zeros_like(mask))
    assert float(value) == 0.0
    assert all(np.all(np.asarray(gradient) == 0) for gradient in gradients)


def test_equal_cosines_cost_the_logs_of_words_and_patches():
    ones = jnp.ones((2, 196, 4))
    terms = jax.jit(token_alignment_loss)(ones[:, :111], ones, np.ones((2, 111), bool), np.full((2, 111), 1 / 111))
    np.testing.assert_allclose(terms, [4.70953, 5.27811], atol=1e-5)


def test_weights_are_those_of_the_released_quantiles():
    attention = RNG.random((4, 12)).astype(np.float32)
    attention[1, 7:] = 0
    attention[2, 1:] = 0
    attention[3] = 0
    got = np.asarray(jax.jit(attention_weights)(attention))
    for row, expected in zip(got[:3], attention[:3].astype(np.float64), strict=True):
        there = expected != 0
        expected[there] = np.clip(expected[there], *np.quantile(expected[there], [0.1, 0.9]))
        np.testing.assert_allclose(row, expected / expected.sum(), rtol=1e-5)
    assert np.all(got[3] == 0)


def test_weights_and_targets_get_no_gradient():
    gradient = jax.jit(jax.grad(lambda w: unit_contrast(WORDS, WORDS[::-1], attention_weights(w), temperature=0.1)[0]))
    assert np.all(np.asarray(gradient(jnp.asarray(RNG.random((B, W)), jnp.float32))) == 0)
