"""Masked language modelling: the formula in float64, what is filled up, guesses, and slopes."""

import jax.numpy as jnp
import numpy as np
import slopes

from medvlp_jax.losses.masked_language import masked_language_sums

B, P, V = 3, 4, 7


def case():
    rng = np.random.default_rng(0)
    weights = (np.arange(P) < np.asarray([4, 2, 0])[:, None]).astype(np.float32)
    return rng.normal(size=(B, P, V)).astype(np.float32), rng.integers(0, V, (B, P)).astype(np.int32), weights


def definition(logits, targets, weights):
    """Sum over masked positions by loops, in float64."""
    sums = np.zeros(3)
    for b in range(B):
        for p in range(P):
            if weights[b, p]:
                z = np.asarray(logits[b, p], np.float64)
                sums += [np.logaddexp.reduce(z) - z[targets[b, p]], z.argmax() == targets[b, p], 1]
    return sums


def test_sums_are_those_of_the_formula_and_blind_to_what_is_filled_up():
    logits, targets, weights = case()
    found = masked_language_sums(logits, targets, weights)
    np.testing.assert_allclose(found, definition(logits, targets, weights), rtol=1e-6)
    slopes.assert_equal(
        lambda x: masked_language_sums(x, targets, weights)[0], lambda x: definition(x, targets, weights)[0], logits
    )
    spoilt = np.where(weights[..., None] > 0, logits, 1e4).astype(np.float32)
    np.testing.assert_allclose(masked_language_sums(spoilt, targets, weights), found, rtol=1e-6)
    nothing = masked_language_sums(logits, targets, 0 * weights)
    np.testing.assert_array_equal(nothing, np.zeros(3))


def test_half_precision_logits_are_summed_in_float32():
    logits, targets, weights = case()
    found = masked_language_sums(jnp.asarray(logits, jnp.bfloat16), targets, weights)
    assert found.dtype == jnp.float32
    rounded = np.asarray(jnp.asarray(logits, jnp.bfloat16), np.float32)
    np.testing.assert_allclose(found, definition(rounded, targets, weights), rtol=1e-6)
