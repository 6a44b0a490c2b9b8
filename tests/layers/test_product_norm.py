"""A 1x1 convolution normalised by the moments of its input: the numbers of normalising its output."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvlp_jax.layers.norm import BatchNorm
from medvlp_jax.layers.product_norm import product_norm

RNG = np.random.default_rng(0)


def in_float64(a, kernel, scale, bias, gradient):
    """The definition and its gradients, by hand."""
    a, w, scale, bias, g = (np.asarray(x, np.float64) for x in (a, kernel[0, 0], scale, bias, gradient))
    a_rows, g_rows = a.reshape(-1, a.shape[-1]), g.reshape(-1, g.shape[-1])
    y = a_rows @ w
    mean, var = y.mean(0), y.var(0)
    unit = (y - mean) / np.sqrt(var + 1e-5)
    dy = g_rows - g_rows.mean(0) - unit * (g_rows * unit).mean(0)
    dy *= scale / np.sqrt(var + 1e-5)
    values = (unit * scale + bias).reshape(g.shape), mean, var
    return values, ((dy @ w.T).reshape(a.shape), a_rows.T @ dy, (g_rows * unit).sum(0), g_rows.sum(0))


@pytest.mark.parametrize(("inputs", "outputs"), [(8, 32), (6, 3)])
def test_value_and_gradients_are_those_of_the_definition(inputs, outputs):
    a = np.maximum(RNG.normal(0.5, 1.0, (6, 5, 4, inputs)), 0).astype(np.float32)
    kernel = RNG.normal(size=(1, 1, inputs, outputs)).astype(np.float32)
    scale, bias = RNG.normal(1.0, 0.3, (2, outputs)).astype(np.float32)
    gradient = RNG.normal(size=(6, 5, 4, outputs)).astype(np.float32)
    values, gradients = in_float64(a, kernel, scale, bias, gradient)

    def run():
        got, pull = jax.vjp(lambda *x: product_norm(*x, 1e-5), a, kernel, scale, bias)
        return got, pull((gradient, jnp.zeros(outputs), jnp.zeros(outputs)))

    got, pulled = jax.jit(run)()
    for ours, expected in zip((*got, *pulled), (*values, *gradients), strict=True):
        expected = np.reshape(expected, ours.shape)
        np.testing.assert_allclose(ours, expected, atol=3e-6 * np.abs(expected).max())


def test_batchnorm_of_a_kernel_is_batchnorm_of_the_convolution():
    a = jnp.asarray(RNG.normal(size=(4, 3, 3, 6)), jnp.float32)
    kernel = jnp.asarray(RNG.normal(size=(1, 1, 6, 12)), jnp.float32)
    y = jnp.einsum("nhwi,io->nhwo", a, kernel[0, 0])
    norm = BatchNorm()
    variables = norm.init(jax.random.key(0), y, train=True)
    expected, stats = norm.apply(variables, y, train=True, mutable=["batch_stats"])
    got, got_stats = norm.apply(variables, a, train=True, kernel=kernel, mutable=["batch_stats"])
    np.testing.assert_allclose(got, expected, atol=1e-5)
    for name in ("mean", "var"):
        np.testing.assert_allclose(got_stats["batch_stats"][name], stats["batch_stats"][name], rtol=1e-5, atol=1e-6)
    again = norm.init(jax.random.key(0), a, train=True, kernel=kernel)
    assert jax.tree.map(jnp.shape, again) == jax.tree.map(jnp.shape, variables)
