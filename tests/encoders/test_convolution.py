"""The CPU forms of convolutions: values and gradients of the definition, and no trace of them on accelerators."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvlp_jax.encoders import convolution


def in_float64(x, kernel, gradient, stride=1):
    """Value of the padded convolution and its gradients, from the products of its shifts."""
    (n, h, w, _), size = x.shape, len(kernel)
    x, kernel, gradient = (np.asarray(a, np.float64) for a in (x, kernel, gradient))
    border, rows, columns = size // 2, -(-h // stride), -(-w // stride)
    padded = np.pad(x, ((0, 0), (border, border), (border, border), (0, 0)))
    y, dx, dk = np.zeros((n, rows, columns, kernel.shape[3])), np.zeros_like(padded), np.zeros_like(kernel)
    for i in range(size):
        for j in range(size):
            window = (slice(None), slice(i, i + h, stride), slice(j, j + w, stride))
            y += padded[window] @ kernel[i, j]
            dx[window] += gradient @ kernel[i, j].T
            dk[i, j] = np.einsum("nhwi,nhwo->io", padded[window], gradient)
    return y, dx[:, border:-border, border:-border], dk


@pytest.mark.parametrize("sides", [(8, 6), (7, 7), (5, 8)])
def test_winograd_is_as_exact_as_the_plain_convolution(sides):
    channels = convolution.WIDE
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


@pytest.mark.parametrize(
    ("size", "stride", "inputs", "sides"),
    [(7, 2, 3, (32, 30)), (7, 4, 1, (29, 31)), (3, 2, 5, (8, 6)), (3, 2, 5, (7, 9)), (3, 3, 2, (10, 11))],
)
def test_gradients_of_strided_convolutions_are_as_exact_as_the_plain_ones(size, stride, inputs, sides):
    rng = np.random.default_rng(0)
    x, kernel = (
        rng.normal(size=shape).astype(np.float32)
        for shape in ((2, *sides, inputs), (size, size, inputs, convolution.WIDE))
    )
    gradient = rng.normal(size=(2, -(-sides[0] // stride), -(-sides[1] // stride), convolution.WIDE))
    gradient = gradient.astype(np.float32)

    @jax.jit
    def both():
        y, pull = jax.vjp(lambda x, k: convolution.square_conv(x, k, stride), x, kernel)
        return y, *pull(gradient)

    for got, expected in zip(both(), in_float64(x, kernel, gradient, stride), strict=True):
        assert np.abs(got - expected).max() / np.abs(expected).max() < 3e-6
    # The products of patches are in the program, where the kernel is wide enough.
    assert "concatenate" in str(jax.make_jaxpr(both)())


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
    def convolutions(platform, dtype, size=3, stride=1):
        def loss(x, kernel):
            return jnp.sum(convolution.square_conv(x, kernel, stride))

        channels = convolution.WIDE
        shapes = [jax.ShapeDtypeStruct(s, dtype) for s in ((2, 8, 8, channels), (size, size, channels, channels))]
        lowered = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).trace(*shapes).lower(lowering_platforms=(platform,))
        return lowered.as_text().count("stablehlo.convolution")

    for size, stride, products in ((3, 1, 3), (7, 2, 2)):
        assert convolutions("tpu", jnp.float32, size, stride) == 3
        assert convolutions("cpu", jnp.bfloat16, size, stride) == 3
        assert convolutions("cpu", jnp.float32, size, stride) == 3 - products


COLOURS = ((1.0, 0.0), (1.02, 0.13), (0.9, -0.4))


def grey_parts():
    rng = np.random.default_rng(0)
    shapes = ((3, 9, 8, 1), (7, 7, 3, 64), (3, 5, 4, 64))
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize("colours", [COLOURS, tuple((factor, 0.0) for factor, _ in COLOURS)])
def test_convolution_of_grey_is_that_of_the_channels_made_of_it(colours):
    grey, kernel, gradient = grey_parts()
    conv = functools.partial(convolution.square_conv, stride=2)
    factor, offset = np.asarray(colours).T

    @jax.jit
    def both(grey, kernel):
        y, pull = jax.vjp(lambda *x: convolution.grey_conv(conv, *x, colours, jnp.float32), grey, kernel)
        return y, *pull(gradient)

    channels = grey.astype(np.float64) * factor + offset
    y, channels_gradient, kernel_gradient = in_float64(channels, kernel, gradient, 2)
    grey_gradient = (channels_gradient * factor).sum(axis=-1, keepdims=True)
    for got, expected in zip(both(grey, kernel), (y, grey_gradient, kernel_gradient), strict=True):
        assert np.abs(got - expected).max() / np.abs(expected).max() < 3e-6


def test_accelerators_convolve_all_channels_made_of_grey():
    def kernels(platform, colours):
        def conv(grey, kernel):
            conv = functools.partial(convolution.square_conv, stride=2)
            return convolution.grey_conv(conv, grey, kernel, colours, jnp.bfloat16)

        grey, kernel, _ = grey_parts()
        lowered = jax.jit(conv).trace(grey, kernel).lower(lowering_platforms=(platform,)).as_text()
        return [int(channels) for channels in re.findall(r"convolution\(.*tensor<7x7x(\d)x64xbf16>\)", lowered)]

    assert kernels("tpu", COLOURS) == [3]
    assert kernels("cpu", COLOURS) == [1, 1]
    assert kernels("tpu", tuple((factor, 0.0) for factor, _ in COLOURS)) == [1]
