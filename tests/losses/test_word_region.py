"""GLoRIA's local loss against its formula in float64: masks, variants, closed forms, tiles."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import slopes

from medvlp_jax.losses.contrastive import contrastive
from medvlp_jax.losses.schedules import Sweep
from medvlp_jax.losses.word_region import word_region_attention, word_region_loss, word_region_scores

B, R, W, D = 5, 6, 4, 3
DENSE_LOSS = jax.jit(functools.partial(word_region_loss, sweep=Sweep()))
RNG = np.random.default_rng(0)
REGIONS = RNG.normal(size=(B, R, D)).astype(np.float32)
WORDS = RNG.normal(size=(B, W, D)).astype(np.float32)
MASK = np.arange(W) < np.asarray([4, 1, 2, 4, 3])[:, None]
VARIANTS = [{}, {"form": "single_softmax", "length_normalised": True, "similarity": 3.0, "attention": 2.0}]


def score(
    regions, words, attention=4.0, similarity=5.0, form="double_softmax", pool="logsumexp", length_normalised=False
):
    """Of one image and one text without padding; the attended vectors are formed."""
    if form == "double_softmax":
        looks = slopes.softmax(regions @ words.T)
    else:
        looks = slopes.unit(regions) @ slopes.unit(words).T
    seen = slopes.softmax(attention * looks.T) @ regions
    cosine = similarity * np.sum(slopes.unit(seen) * slopes.unit(words), axis=1)
    value = np.max(cosine) if pool == "max" else np.log(np.sum(np.exp(cosine)))
    return value - (np.log(len(words)) if length_normalised else 0.0)


def definition(regions, words, mask, directions=(1.0, 1.0), **variant):
    kept = np.flatnonzero(mask.any(axis=1))
    scores = 10 * np.asarray([[score(regions[i], words[j][mask[j]], **variant) for j in kept] for i in kept])
    eye = np.eye(len(kept))
    losses = [slopes.cross_entropy(s, eye).mean() for s in (scores, scores.T)]
    return directions[0] * losses[0] + directions[1] * losses[1]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_loss_equals_float64(variant):
    slopes.assert_equal(
        lambda regions, words: word_region_loss(regions, words, MASK, **variant),
        lambda regions, words: definition(regions, words, MASK, **variant),
        REGIONS,
        WORDS,
    )


def test_small_tiles_directions_and_a_text_without_words():
    mask = MASK.copy()
    mask[3] = False
    tiles = {"images_per_tile": 2, "texts_per_tile": 3, "directions": (0.75, 0.25)}

    def loss(regions, words):
        return word_region_loss(regions, words, mask, **tiles)

    of_regions, of_words = slopes.assert_equal(
        loss, lambda regions, words: definition(regions, words, mask, (0.75, 0.25)), REGIONS, WORDS
    )
    assert np.all(np.asarray(of_words)[~mask] == 0)
    assert np.all(np.asarray(of_regions)[3] == 0)  # the image of that text


def test_scores_of_more_texts_than_images_by_the_best_word():
    got = word_region_scores(REGIONS[:3], WORDS, MASK, pool="max", sweep=Sweep("chunked"), texts_per_tile=2)
    expected = [[score(v, t[m], pool="max") for t, m in zip(WORDS, MASK, strict=True)] for v in REGIONS[:3]]
    np.testing.assert_allclose(got, expected, atol=4e-6)


@pytest.mark.parametrize("form", ["double_softmax", "single_softmax"])
def test_attention_is_that_of_the_score(form):
    got = np.asarray(word_region_attention(REGIONS[2], WORDS[2], MASK[2], form=form))
    looks = REGIONS[2] @ WORDS[2, :2].T
    if form == "single_softmax":
        looks = slopes.unit(REGIONS[2]) @ slopes.unit(WORDS[2, :2]).T
    else:
        looks = slopes.softmax(looks.astype(np.float64))
    np.testing.assert_allclose(got[:2], slopes.softmax(4 * looks.T), rtol=1e-5)
    np.testing.assert_allclose(got.sum(axis=1), 1, rtol=1e-6)


def test_padding_changes_nothing():
    padded = np.concatenate([WORDS, 7 * np.ones((B, 3, D), np.float32)], axis=1)
    got = DENSE_LOSS(REGIONS, padded, np.pad(MASK, ((0, 0), (0, 3))))
    assert float(got) == pytest.approx(definition(REGIONS.astype(float), WORDS.astype(float), MASK), rel=1e-6)


def test_closed_forms():
    # One word looks at all regions alike; with cosine 1 everywhere W words score 5 + ln W.
    regions = RNG.normal(size=(361, D)).astype(np.float32)
    attention = jax.jit(word_region_attention)(regions, WORDS[0], np.arange(W) < 1)
    np.testing.assert_allclose(attention[0], np.full(361, 1 / 361), rtol=1e-6)
    ones, mask = np.ones((48, 4, D), np.float32), np.arange(4) < np.asarray([1] + 47 * [4])[:, None]
    scores = jax.jit(word_region_scores)(ones[:1], ones, mask)[0]
    np.testing.assert_allclose(scores[:2], [5.0, 6.38629], rtol=1e-6)
    # Equal everywhere at a batch of 48: local and global loss are 2 ln 48 each.
    local = DENSE_LOSS(ones, ones, np.ones((48, 4), bool))
    whole = contrastive(ones[:, 0], ones[:, 0], temperature=0.1)
    assert float(local + whole) == pytest.approx(15.4848, abs=1e-4)


def test_degenerate_texts_and_images_stay_finite():
    loss = jax.jit(jax.value_and_grad(DENSE_LOSS, argnums=(0, 1)))
    opposite = np.concatenate([np.ones((B, 3, D)), -np.ones((B, 3, D))], axis=1).astype(np.float32)
    for regions, words in ((0 * REGIONS, WORDS), (REGIONS, 0 * WORDS), (opposite, WORDS), (REGIONS, 1e4 * WORDS)):
        value, gradients = loss(regions, words, MASK)
        assert np.isfinite(value)
        assert all(np.all(np.isfinite(gradient)) for gradient in gradients)
    value, gradients = loss(REGIONS, WORDS, np.zeros((B, W), bool))
    assert float(value) == 0.0
    assert all(np.all(np.asarray(gradient) == 0) for gradient in gradients)


def test_bfloat16_stays_near():
    regions, words = (RNG.normal(size=(4, n, 64)) for n in (49, 9))
    mask = np.ones((4, 9), bool)
    scores = jax.jit(word_region_scores)
    exact = scores(jnp.asarray(regions, jnp.float32), jnp.asarray(0.1 * words, jnp.float32), mask)
    near = scores(jnp.asarray(regions, jnp.bfloat16), jnp.asarray(0.1 * words, jnp.bfloat16), mask)
    assert near.dtype == jnp.float32
    np.testing.assert_allclose(near, exact, atol=0.05)


def test_unknown_variants_are_refused():
    with pytest.raises(ValueError, match="double_softmax, single_softmax"):
        word_region_loss(REGIONS, WORDS, MASK, form="sparse")
    with pytest.raises(ValueError, match="logsumexp, max"):
        word_region_scores(REGIONS, WORDS, MASK, pool="mean")
