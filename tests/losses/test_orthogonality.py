"""M-FLAG's terms: the definition in float64, closed forms, masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import slopes

from medvlp_jax.losses.orthogonality import cosine_alignment, orthogonality_loss

RNG = np.random.default_rng(0)
Z = RNG.normal(size=(7, 5)).astype(np.float32)
VALID = np.asarray([True, True, False, True, False, True, True])


def definition(z, centre=False):
    z = z - z.mean(axis=0) if centre else z
    c = z.T @ z / len(z)
    beside = np.sum(c**2) - np.sum(np.diag(c) ** 2)
    return 0.5 * (np.sum((np.diag(c) - 1) ** 2) + 0.0051 * beside)


@pytest.mark.parametrize("centre", [False, True])
def test_orthogonality_equals_float64(centre):
    valid = VALID if centre else np.ones_like(VALID)
    slopes.assert_equal(
        lambda z: orthogonality_loss(z, centre=centre, valid_B=jnp.asarray(valid) if centre else None),
        lambda z: definition(z[valid], centre),
        Z,
    )


@pytest.mark.parametrize(
    ("z", "value"),
    [
        (np.zeros((8, 2048)), 1024.0),
        (np.eye(2), 0.25),
        (np.sqrt(2) * np.eye(2), 0.0),
        (np.ones((2, 2)), 0.0051),
        (np.ones((4, 2048)), 10690.25),
    ],
)
def test_orthogonality_in_closed_form(z, value):
    assert float(jax.jit(orthogonality_loss)(z.astype(np.float32))) == pytest.approx(value, rel=1e-5, abs=1e-6)


def test_no_batch_smaller_than_the_width_gets_below_the_floor():
    # The best z of B examples: C has B equal eigenvalues, spread evenly over the D dimensions.
    width, batch = 64, 16
    k = 0.0051 * (width**2 / batch - width)
    walsh = [[(-1) ** bin(i & j).count("1") for i in range(batch)] for j in range(width)]
    size = 1 / (1 + k / width)  # of the diagonal at the optimum
    z = np.sqrt(size) * np.asarray(walsh).T
    best = jax.jit(orthogonality_loss)(z.astype(np.float32))
    assert float(best) == pytest.approx(width * k / (2 * (width + k)), rel=1e-4)


def test_alignment_equals_float64_and_has_its_ends():
    y = RNG.normal(size=Z.shape).astype(np.float32)
    slopes.assert_equal(
        lambda x, y: cosine_alignment(x, y, valid_B=jnp.asarray(VALID)),
        lambda x, y: np.mean(4 - 4 * np.sum(slopes.unit(x) * slopes.unit(y), axis=1)[VALID]),
        Z,
        y,
    )
    x = jnp.asarray([[1.0, 0.0]])
    for y, value in (([[3.0, 0.0]], 0.0), ([[0.0, 2.0]], 4.0), ([[-1.0, 0.0]], 8.0)):
        assert float(jax.jit(cosine_alignment)(x, jnp.asarray(y))) == pytest.approx(value, abs=1e-6)


def test_pairs_do_not_see_each_other():
    gradient = jax.jit(jax.grad(cosine_alignment))
    moved = Z.copy()
    moved[3:] += 1.0
    np.testing.assert_allclose(gradient(moved, Z[::-1])[:3], gradient(Z, Z[::-1])[:3], rtol=1e-6)


def test_nothing_valid_is_finite():
    nothing = jnp.zeros(7, bool)
    for loss in (lambda z: orthogonality_loss(z, valid_B=nothing), lambda z: cosine_alignment(z, Z, valid_B=nothing)):
        value, gradient = jax.jit(jax.value_and_grad(loss))(Z)
        assert np.isfinite(value)
        assert np.all(np.asarray(gradient) == 0)


def test_bfloat16_products_are_accumulated_in_float32():
    z = jnp.full((512, 4), 300.0, jnp.bfloat16)  # the sum of squares is beyond float16 and the steps of bfloat16
    assert float(jax.jit(orthogonality_loss)(z)) == pytest.approx(definition(np.asarray(z, np.float64)), rel=1e-5)
