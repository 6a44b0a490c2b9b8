"""Convolutions, and the forms of their products that are fast on CPU.

XLA's CPU convolutions run near the peak of its matrix products, so what is left to gain is the number of products:
a 3x3 convolution of stride 1 is computed by Winograd's F(2x2, 3x3) (arXiv 1509.09308), 4 products per output where the
definition has 9, forward and in both gradients. It is float32 arithmetic with another order of rounding; against
float64 its error is about that of the plain form. What XLA does slowly are gradients of kernels: those of 1x1 and of
wide strided convolutions are written as products. Accelerators keep the plain convolution: jax 0.11 aborted while
compiling the strided 1x1 product for an H100 ("subdim_size_accumulator == dim_size", a check of XLA's Triton fusions).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medvlp_jax.layers.apart import apart

# Below this many channels transforms and copies cost more than the products they spare; of large maps, half as many do.
WIDE = 128
LARGE_MAP = 28

Grid = list[list[jax.Array]]
Colours = tuple[tuple[float, float], ...]


def conv2d(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """NHWC convolution with `padding` zeros on every side (`SAME` pads differently at stride 2)."""
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def check_channels(trunk: str, image: jax.Array, in_channels: int, colours: Colours) -> None:
    """Raises ValueError for images [N, H, W, C] or colours that a trunk with so many channels does not take."""
    if image.shape[-1] not in (1, in_channels):
        raise ValueError(f"{trunk} takes images with 1 or {in_channels} channels, got shape {image.shape}.")
    if len(colours) not in (0, in_channels):
        raise ValueError(
            f"{trunk} has in_channels={in_channels}, but images come with statistics of {len(colours)} channels. "
            "Use as many in image.mean and image.std, or set model.trunk.in_channels."
        )


def colour_channels(grey: jax.Array, colours: Colours) -> jax.Array:
    """Channels `factor * grey + offset` of [..., 1], one per pair of `colours`, float32."""
    factor_C, offset_C = np.asarray(colours, np.float32).T
    return grey * factor_C + offset_C


def grey_conv(
    conv: Callable[[jax.Array, jax.Array], jax.Array], grey: jax.Array, kernel: jax.Array, colours: Colours, dtype: Any
) -> jax.Array:
    """`conv(colour_channels(grey, colours), kernel)` of grey [N, H, W, 1] and kernel [s, s, C, O], in `dtype`.

    Channels that are multiples of one another are one, with the sum of their kernels. Offsets are the same for all
    images and differ at padded edges only: on CPU they are a convolution of their own, so that ResNet's stem has a
    third of the products and, in the gradient of its kernel, of the patches.
    """
    factor_Cx1, offset_Cx1 = np.asarray(colours, np.float32).T[..., None]

    def of_one(channel, parts_Cx1, kernel):
        return conv(channel.astype(dtype), jnp.sum(kernel * parts_Cx1, axis=2, keepdims=True).astype(dtype))

    def of_two(grey, kernel):
        edges = of_one(jnp.ones_like(grey[:1]), offset_Cx1, kernel)
        return of_one(grey, factor_Cx1, kernel) + _repeated(edges, grey.shape[0])

    def gradients(grey, kernel, gradient):
        return jax.vjp(of_two, grey, kernel)[1](gradient)

    def backward(saved, gradient):
        # Apart: both convolutions read the gradient, which mostly comes from a normalisation, and would repeat it.
        return tuple(apart(lambda *parts, i=i: gradients(*parts)[i])(*saved, gradient) for i in range(2))

    on_cpu = jax.custom_vjp(of_two)
    on_cpu.defvjp(lambda *parts: (of_two(*parts), parts), backward)

    def of_all(grey, kernel):
        return conv(colour_channels(grey, colours).astype(dtype), kernel.astype(dtype))

    if not offset_Cx1.any():
        return of_one(grey, factor_Cx1, kernel)
    return jax.lax.platform_dependent(grey, kernel, cpu=on_cpu, default=of_all)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _repeated(x: jax.Array, n: int) -> jax.Array:
    """x [1, ...] as [n, ...]. Its gradient is a product: XLA's CPU sum over a first axis takes 20 times as long."""
    return jnp.broadcast_to(x, (n, *x.shape[1:]))


def _repeated_backward(n, _, gradient):
    total = jnp.matmul(jnp.ones((1, n), gradient.dtype), gradient.reshape(n, -1), precision=jax.lax.Precision.HIGHEST)
    return (total.reshape(1, *gradient.shape[1:]),)


_repeated.defvjp(lambda x, n: (_repeated(x, n), None), _repeated_backward)


def square_conv(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Convolution of x [N, H, W, I] with a kernel [s, s, I, O] of odd side s, padded by (s - 1) / 2."""
    size = kernel.shape[0]
    if size == 1:
        return conv1x1(x, kernel, stride)
    channels = WIDE // 2 if min(x.shape[1:3]) >= LARGE_MAP else WIDE
    if x.dtype == jnp.float32 and size == 3 and stride == 1 and min(kernel.shape[2:]) >= channels:
        return conv3x3(x, kernel)
    if x.dtype == jnp.float32 and stride > 1 and kernel.shape[3] >= channels:
        return strided_conv(x, kernel, stride)
    return _plain(x, kernel, stride)


def _plain(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    return conv2d(x, kernel, stride, (kernel.shape[0] - 1) // 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def strided_conv(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """`conv2d` padded by (s - 1) / 2; on CPU both gradients are products with the patches that it reads.

    XLA's own for the kernel is a convolution whose kernel is the whole map; that of ResNet-50's stem takes three times
    as long. Its own for x takes 1.3 times as long.
    """
    return _plain(x, kernel, stride)


def _strided_conv_backward(stride, saved, gradient):
    def on_cpu(x, kernel, gradient):
        patches, spread = jax.vjp(lambda x: _patches(x, kernel.shape[0], stride, gradient.shape[1:3]), x)
        row_gradient = gradient.reshape(-1, gradient.shape[-1])
        (x_gradient,) = spread(row_gradient @ kernel.reshape(-1, kernel.shape[-1]).T)
        return x_gradient, _row_products(patches, row_gradient).reshape(kernel.shape)

    def elsewhere(x, kernel, gradient):
        return jax.vjp(functools.partial(_plain, stride=stride), x, kernel)[1](gradient)

    return jax.lax.platform_dependent(*saved, gradient, cpu=on_cpu, default=elsewhere)


strided_conv.defvjp(lambda x, kernel, stride: (strided_conv(x, kernel, stride), (x, kernel)), _strided_conv_backward)


def _patches(x: jax.Array, size: int, stride: int, outputs: tuple[int, int]) -> jax.Array:
    """What a size x size kernel sees of x [N, H, W, I] at every output: [N * outputs, size * size * I]."""
    (n, h, w, channels), (rows, columns) = x.shape, outputs
    blocks = columns - 1 + -(-size // stride)  # of `stride` pixels side by side, which are copied in one piece
    before = (size - 1) // 2
    x = jnp.pad(x, ((0, 0), (before, before), (before, blocks * stride - w - before), (0, 0)))
    x = x.reshape(n, h + 2 * before, blocks, stride * channels)
    pieces = [
        x[:, i : i + stride * (rows - 1) + 1 : stride, b : b + columns, : (size - b * stride) * channels]
        for i in range(size)
        for b in range(-(-size // stride))
    ]
    return jnp.concatenate(pieces, axis=-1).reshape(n * rows * columns, size * size * channels)


def _row_products(x: jax.Array, y: jax.Array) -> jax.Array:
    """`x.T @ y` of x [R, I] and y [R, O], many rows, on CPU."""
    if x.shape[1] > y.shape[1]:
        # XLA's CPU product that contracts the rows takes up to twice as long when its first operand is the wider one;
        # without the barrier XLA folds the transpose back into the product.
        return jax.lax.optimization_barrier(_row_products(y, x)).T
    return x.T @ y


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv1x1(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """1x1 convolution, x [N, H, W, I], kernel [1, 1, I, O]; on CPU one plain product of the rows that it reads.

    Its gradients there are twice as fast as those of a convolution, or of a dot with several row axes, which XLA
    transposes inside the preceding fusion.
    """
    product = functools.partial(_product_1x1, stride=stride)
    return jax.lax.platform_dependent(x, kernel, cpu=product, default=functools.partial(_plain, stride=stride))


def _conv1x1_backward(stride, saved, gradient):
    def on_cpu(x, kernel, gradient):
        read, spread = jax.vjp(lambda x: x[:, ::stride, ::stride], x)
        rows, row_gradient = read.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
        kernel_gradient = _row_products(rows, row_gradient)
        return spread((row_gradient @ kernel[0, 0].T).reshape(read.shape))[0], kernel_gradient[None, None]

    def elsewhere(x, kernel, gradient):
        return jax.vjp(functools.partial(_plain, stride=stride), x, kernel)[1](gradient)

    return jax.lax.platform_dependent(*saved, gradient, cpu=on_cpu, default=elsewhere)


conv1x1.defvjp(lambda x, kernel, stride: (conv1x1(x, kernel, stride), (x, kernel)), _conv1x1_backward)


def _product_1x1(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    x = x[:, ::stride, ::stride]
    return (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:-1], kernel.shape[-1])


@jax.custom_vjp
def conv3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """3x3 convolution of stride 1 and padding 1, x [N, H, W, I], kernel [3, 3, I, O]; Winograd's on CPU."""
    return jax.lax.platform_dependent(x, kernel, cpu=winograd, default=functools.partial(_plain, stride=1))


def _conv3x3_backward(saved, gradient):
    def on_cpu(x, kernel, gradient):
        # The gradient of x is the same convolution with the kernel turned round.
        turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
        return winograd(gradient, turned), _winograd_kernel_gradient(x, kernel, gradient)

    def elsewhere(x, kernel, gradient):
        return jax.vjp(functools.partial(_plain, stride=1), x, kernel)[1](gradient)

    return jax.lax.platform_dependent(*saved, gradient, cpu=on_cpu, default=elsewhere)


conv3x3.defvjp(lambda x, kernel: (conv3x3(x, kernel), (x, kernel)), _conv3x3_backward)


def winograd(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`conv2d(x, kernel, 1, 1)` for 3x3 kernels by F(2x2, 3x3): tiles of 2x2 outputs from 4x4 inputs."""
    tiles, taps = _tiles(x), _taps(kernel)
    # Sixteen products and not one batched: every factor is made by one fusion and is still in cache when it is used.
    return _untile([[tiles[i][j] @ taps[i][j] for j in range(4)] for i in range(4)], (*x.shape[:3], kernel.shape[3]))


def _winograd_kernel_gradient(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> jax.Array:
    tiles = _tiles(x)
    product = jax.ShapeDtypeStruct((tiles[0][0].shape[0], kernel.shape[3]), gradient.dtype)
    outputs = functools.partial(_untile, shape=gradient.shape)
    # Apart: the gradient mostly comes from a normalisation, which all sixteen would repeat.
    (products,) = apart(jax.linear_transpose(outputs, [[product] * 4] * 4))(gradient)
    taps = [[_row_products(tiles[i][j], products[i][j]) for j in range(4)] for i in range(4)]
    return jax.vjp(_taps, kernel)[1](taps)[0]


def _tiles(x: jax.Array) -> Grid:
    """4x4 arrays [N * tiles, I]: element (i, j) of every tile, transformed."""
    channels, rows, columns = x.shape[3], (x.shape[1] + 1) // 2, (x.shape[2] + 1) // 2
    x = jnp.pad(x, ((0, 0), *((1, 1 + side % 2) for side in x.shape[1:3]), (0, 0)))
    tiles = [
        [x[:, i : i + 2 * rows - 1 : 2, j : j + 2 * columns - 1 : 2].reshape(-1, channels) for j in range(4)]
        for i in range(4)
    ]
    return _both_axes(lambda d: [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]], tiles)


def _taps(kernel: jax.Array) -> Grid:
    """4x4 arrays [I, O]."""
    return _both_axes(_transform_taps, [[kernel[i, j] for j in range(3)] for i in range(3)])


def _untile(products: Grid, shape: tuple[int, int, int, int]) -> jax.Array:
    """The outputs [N, H, W, O] of `shape` from 4x4 arrays [N * tiles, O]."""
    n, h, w, channels = shape
    rows, columns = (h + 1) // 2, (w + 1) // 2
    outputs = _both_axes(lambda m: [m[0] + m[1] + m[2], m[1] - m[2] - m[3]], products)
    y = jnp.stack([jnp.stack(row, axis=1) for row in outputs], axis=1).reshape(n, rows, columns, 2, 2, channels)
    return y.transpose(0, 1, 3, 2, 4, 5).reshape(n, 2 * rows, 2 * columns, channels)[:, :h, :w]


def _transform_taps(g: list[jax.Array]) -> list[jax.Array]:
    outer = 0.5 * (g[0] + g[2])
    return [g[0], outer + 0.5 * g[1], outer - 0.5 * g[1], g[2]]


def _both_axes(transform: Callable[[list[jax.Array]], list[jax.Array]], grid: Grid) -> Grid:
    """Applies a transform of lists to the columns of a grid and then to its rows."""
    columns = [transform(list(column)) for column in zip(*grid, strict=True)]
    return [transform(list(row)) for row in zip(*columns, strict=True)]
