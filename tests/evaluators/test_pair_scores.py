"""Scores of text pairs against loops in float64, and what the three rules promise."""

import math

import numpy as np
import pytest

from medvlp_jax.evaluators.pair_scores import RULES, pair_scores

RNG = np.random.default_rng(0)
IMAGE = RNG.normal(size=(5, 7)) * 30
POSITIVE = RNG.normal(size=(4, 7)) * RNG.uniform(0.1, 9, size=(4, 1))
NEGATIVE = RNG.normal(size=(3, 7))


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def reference(image, texts, rule):
    if rule == "medclip":
        return sum(cosine(image, text) for text in texts) / len(texts)
    if rule == "chexzero":
        texts = [text / math.sqrt(sum(x * x for x in text)) for text in texts]
    return cosine(image, sum(texts) / len(texts))


@pytest.mark.parametrize("rule", RULES)
def test_against_loops(rule):
    got = pair_scores(IMAGE, POSITIVE, NEGATIVE, rule=rule)
    for n, image in enumerate(IMAGE):
        positive, negative = reference(image, POSITIVE, rule), reference(image, NEGATIVE, rule)
        assert got.positive_N[n] == pytest.approx(positive, abs=1e-12)
        assert got.negative_N[n] == pytest.approx(negative, abs=1e-12)
        assert got.score_N[n] == pytest.approx(1 / (1 + math.exp(-(positive - negative))), abs=1e-12)


def test_rules_differ_with_several_texts_and_agree_with_one():
    several = [pair_scores(IMAGE, POSITIVE, NEGATIVE, rule=rule).score_N for rule in RULES]
    one = [pair_scores(IMAGE, POSITIVE[:1], NEGATIVE[:1], rule=rule).score_N for rule in RULES]
    for other in (1, 2):
        assert np.abs(several[0] - several[other]).max() > 1e-3
        np.testing.assert_allclose(one[0], one[other], atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_sides_swapped_mirror_the_score_and_scales_of_images_do_not_matter(rule):
    score_N = pair_scores(IMAGE, POSITIVE, NEGATIVE, rule=rule).score_N
    np.testing.assert_allclose(pair_scores(IMAGE, NEGATIVE, POSITIVE, rule=rule).score_N, 1 - score_N, atol=1e-12)
    np.testing.assert_allclose(pair_scores(IMAGE / 7, POSITIVE, NEGATIVE, rule=rule).score_N, score_N, atol=1e-12)


def test_float32_input_is_scored_in_float64_and_zero_vectors_give_half():
    got = pair_scores(np.zeros((2, 7), np.float32), POSITIVE.astype(np.float32), NEGATIVE.astype(np.float32))
    assert got.score_N.dtype == np.float64
    np.testing.assert_array_equal(got.score_N, 0.5)


def test_refusals_name_the_value():
    with pytest.raises(ValueError, match=r"'clip'.*chexzero, medclip, biovil"):
        pair_scores(IMAGE, POSITIVE, NEGATIVE, rule="clip")
    with pytest.raises(ValueError, match=r"negative texts have shape \(0, 7\)"):
        pair_scores(IMAGE, POSITIVE, NEGATIVE[:0])
    with pytest.raises(ValueError, match=r"positive texts have shape \(4, 6\).*7"):
        pair_scores(IMAGE, POSITIVE[:, 1:], NEGATIVE)
