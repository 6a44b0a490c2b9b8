"""MGCA's prototype term against the released steps in float64, its golden facts, masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import slopes

from medvlp_jax.losses.prototypes import frozen_before, prototype_loss, sinkhorn

RNG = np.random.default_rng(0)
IMAGES, TEXTS, PROTOTYPES = (RNG.normal(size=(n, 5)).astype(np.float32) for n in (6, 6, 9))
VALID = np.asarray([True, False, True, True, True, False])


def codes(scores, iterations=3):
    """The released Sinkhorn, in the linear domain: prototypes by examples."""
    q = np.exp(scores.T / 0.05)
    q /= q.sum()
    count, batch = q.shape
    for _ in range(iterations):
        q *= (1 / count / q.sum(axis=1))[:, None]
        q *= (1 / batch / q.sum(axis=0))[None]
    return (q / q.sum(axis=0)).T


def definition(images, texts, prototypes, of_codes=None):
    """`of_codes`: the arrays that codes are made of, which get no gradient."""
    predicted, code = [], []
    for x, fixed in zip((images, texts), of_codes or (images, texts), strict=True):
        predicted.append(slopes.unit(x) @ slopes.unit(prototypes).T / 0.2)
        code.append(codes(slopes.unit(fixed) @ slopes.unit(PROTOTYPES.astype(np.float64)).T))
    terms = [slopes.cross_entropy(p, c).mean() for p, c in zip(predicted[::-1], code, strict=True)]
    return 0.5 * sum(terms)


def test_loss_equals_float64():
    fixed = IMAGES[VALID].astype(np.float64), TEXTS[VALID].astype(np.float64)
    slopes.assert_equal(
        lambda *x: prototype_loss(*x, valid_B=jnp.asarray(VALID)),
        lambda images, texts, prototypes: definition(images[VALID], texts[VALID], prototypes, fixed),
        IMAGES,
        TEXTS,
        PROTOTYPES,
    )


def test_released_gradient_of_unit_prototypes_ignores_their_normalisation():
    unit = slopes.unit(PROTOTYPES.astype(np.float64)).astype(np.float32)
    free, through = (
        np.asarray(jax.jit(jax.grad(lambda c: prototype_loss(IMAGES, TEXTS, c, straight_through=on)))(unit))  # noqa: B023
        for on in (False, True)
    )
    along = np.sum(through * unit, axis=1, keepdims=True)
    assert np.abs(along).max() > 1e-3
    np.testing.assert_allclose(free, through - along * unit, atol=1e-6)


def test_codes_are_balanced_and_those_of_the_linear_domain():
    rng = np.random.default_rng(0)
    x, prototypes = (slopes.unit(rng.normal(size=(n, 128))) for n in (72, 500))
    scores = (x @ prototypes.T).astype(np.float32)
    code = np.asarray(jax.jit(sinkhorn)(scores))
    np.testing.assert_allclose(code, codes(scores.astype(np.float64)), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(code.sum(axis=1), 1.0, rtol=1e-6)
    assert 0.1429 < code.sum(axis=0).min() < 0.144 < code.sum(axis=0).max() < 0.1445


def test_codes_of_large_scores_and_masked_examples_are_finite():
    scores = jnp.asarray(50 * RNG.normal(size=(6, 4)), jnp.float32)  # e^1000 and more
    code = np.asarray(jax.jit(sinkhorn)(scores, valid_B=jnp.asarray(VALID)))
    np.testing.assert_allclose(code.sum(axis=1), VALID.astype(float), rtol=1e-6)
    alone = jax.jit(sinkhorn)(jnp.where(VALID[:, None], scores, -scores), valid_B=jnp.asarray(VALID))
    np.testing.assert_allclose(code, alone, atol=1e-6)


def test_uniform_predictions_cost_the_log_of_the_prototypes():
    same = jnp.ones((72, 8))
    assert float(jax.jit(prototype_loss)(same, same, jnp.ones((500, 8)))) == pytest.approx(6.21461, abs=1e-5)


def test_nothing_valid_is_zero_not_nan():
    of = jax.jit(jax.value_and_grad(lambda *x: prototype_loss(*x, valid_B=jnp.zeros(6, bool)), argnums=(0, 1, 2)))
    value, gradients = of(IMAGES, TEXTS, PROTOTYPES)
    assert float(value) == 0.0
    assert all(np.all(np.asarray(gradient) == 0) for gradient in gradients)


def test_frozen_prototypes_start_to_learn_at_a_step():
    @jax.jit
    def gradient(step):
        return jax.grad(lambda c: prototype_loss(IMAGES, TEXTS, frozen_before(c, step, 10)))(PROTOTYPES)

    assert np.all(np.asarray(gradient(9)) == 0)
    assert np.any(np.asarray(gradient(10)) != 0)
