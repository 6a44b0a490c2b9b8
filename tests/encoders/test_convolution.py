"""The CPU forms of convolutions: values and gradients of the definition, and no trace of them on accelerators."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvlp_jax.encoders import convolution


def in_float64(x, kernel, gradient):
    """Value of the padded 3x3 convolution and its gradients, from the nine shifted products."""
    n, h, w, _ = x.shape
    x, kernel, gradient = (np.asarray(a, np.float64) for a in (x, kernel, gradient))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    y, dx, dk = np.zeros((n, h, w, kernel.shape[3])), np.zeros_like(padded), np.zeros_like(kernel)
    for i in range(3):
        for j in range(3):
            window = (slice(None), slice(i, i + h), slice(j, j + w))
            y += padded[window] @ kernel[i, j]
            dx[window] += gradient @ kernel[i, j].T
            dk[i, j] = np.einsum("nhwi,nhwo->io", padded[window], gradient)
    return y, dx[:, 1:-1, 1:-1], dk


@pytest.mark.parametrize("sides", [(8, 6), (7, 7), (5, 8)])
def test_winograd_is_as_exact_as_the_plain_convolution(sides):
    channels = convolution.WINOGRAD_CHANNELS
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, *sides, channels)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, channels, channels + 1)).astype(np.float32)
    gradient = rng.normal(size=(3, *sides, channels + 1)).astype(np.float32)

    def all_of(conv):
        y, pull = jax.vjp(conv, x, kernel)
        return y, *pull(gradient)

    got = jax.jit(lambda: all_of(lambda x, k: convolution.square_conv(x, k, 1)))()
    plain = jax.jit(lambda: all_of(lambda x, k: convolution.conv2d(x, k, 1, 1)))()
    for a, b, expected in zip(got, plain, in_float64(x, kernel, gradient), strict=True):
        scale = np.abs(expected).max()
        assert np.abs(a - expected).max() / scale < 3e-6
        assert np.abs(b - expected).max() / scale < 3e-6
        assert np.any(np.asarray(a) != np.asarray(b))  # it was Winograd's


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("inputs", "outputs"), [(24, 8), (8, 24)])
def test_conv1x1_has_the_gradients_of_the_convolution(inputs, outputs, stride):
    rng = np.random.default_rng(0)
    x, kernel = (rng.normal(size=shape).astype(np.float32) for shape in ((3, 7, 6, inputs), (1, 1, inputs, outputs)))
    with jax.default_matmul_precision("highest"):
        y, pull = jax.vjp(lambda x, k: convolution.square_conv(x, k, stride), x, kernel)
        expected, expected_pull = jax.vjp(lambda x, k: convolution.conv2d(x, k, stride, 0), x, kernel)
        gradient = rng.normal(size=y.shape).astype(np.float32)
        pairs = zip((y, *pull(gradient)), (expected, *expected_pull(gradient)), strict=True)
    for got, plain in pairs:
        np.testing.assert_allclose(got, plain, atol=1e-4)


def test_accelerators_and_half_precision_keep_the_plain_convolution():
    def convolutions(platform, dtype):
        def loss(x, kernel):
            return jnp.sum(convolution.square_conv(x, kernel, 1))

        channels = convolution.WINOGRAD_CHANNELS
        shapes = [jax.ShapeDtypeStruct(s, dtype) for s in ((2, 8, 8, channels), (3, 3, channels, channels))]
        lowered = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).trace(*shapes).lower(lowering_platforms=(platform,))
        return lowered.as_text().count("stablehlo.convolution")

    assert convolutions("tpu", jnp.float32) == 3
    assert convolutions("cpu", jnp.bfloat16) == 3
    assert convolutions("cpu", jnp.float32) == 0
