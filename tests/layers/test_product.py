"""Products of bfloat16 with float32 sums."""

import jax
import jax.numpy as jnp
import numpy as np

from medvlp_jax.layers.product import dot_general

MATRICES = (((1,), (0,)), ((), ()))


def operands(dtype, rows=33, width=2000, columns=17):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(rows, width)), rng.normal(size=(width, columns))
    return jnp.asarray(x, dtype), jnp.asarray(y, dtype)


def test_sums_of_bfloat16_products_are_float32_and_rounded_once():
    x, y = operands(jnp.bfloat16)
    exact = np.asarray(x, np.float64) @ np.asarray(y, np.float64)
    z = jax.jit(dot_general, static_argnums=2)(x, y, MATRICES)
    assert z.dtype == jnp.bfloat16
    # Half a unit in the last of eight binary places, and what float32 sums lose.
    np.testing.assert_array_less(np.abs(np.asarray(z, np.float64) - exact), np.abs(exact) * 2.0**-8 + 1e-3)


def test_other_types_are_left_to_lax():
    x, y = operands(jnp.float32)
    np.testing.assert_array_equal(dot_general(x, y, MATRICES), jax.lax.dot_general(x, y, MATRICES))
    z = dot_general(x.astype(jnp.bfloat16), y.astype(jnp.bfloat16), MATRICES, preferred_element_type=jnp.float32)
    assert z.dtype == jnp.float32


def test_derivatives_are_those_of_the_plain_product():
    x, y = operands(jnp.bfloat16, width=64)

    def loss(product):
        return lambda x, y: jnp.sum(jnp.sin(product(x, y, MATRICES).astype(jnp.float32) / 8))

    ours, plain = (jax.jit(jax.grad(loss(f), (0, 1)))(x, y) for f in (dot_general, jax.lax.dot_general))
    for a, b in zip(ours, plain, strict=True):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), rtol=0.03, atol=0.03)
    _, tangent = jax.jvp(lambda x: dot_general(x, y, MATRICES), (x,), (jnp.ones_like(x),))
    expected = jnp.broadcast_to(jnp.sum(y.astype(jnp.float32), axis=0), tangent.shape)
    np.testing.assert_allclose(np.asarray(tangent, np.float32), expected, rtol=0.02, atol=0.05)
