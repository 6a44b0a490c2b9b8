"""ResNet (arXiv 1512.03385) with the arithmetic of torchvision's `resnet18` ... `resnet152`, stage features."""

import functools
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from medvlp_jax.encoders.convolution import Colours, check_channels, grey_conv, square_conv
from medvlp_jax.layers.norm import BatchNorm, StatsScope
from medvlp_jax.layers.residual import relu

# depth -> (block, blocks per stage)
DEPTHS: dict[str, tuple[str, tuple[int, ...]]] = {
    "18": ("basic", (2, 2, 2, 2)),
    "34": ("basic", (3, 4, 6, 3)),
    "50": ("bottleneck", (3, 4, 6, 3)),
    "101": ("bottleneck", (3, 4, 23, 3)),
    "152": ("bottleneck", (3, 8, 36, 3)),
}
STEMS: tuple[str, ...] = ("imagenet", "small", "space_to_depth", "stride4")
EXPANSION = {"basic": 1, "bottleneck": 4}

_kernel_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class ResNet(nn.Module):
    """ResNet trunk.

    Attributes:
        depth: '18', '34', '50', '101' or '152'; sets `block` and `stage_sizes` unless they are given.
        width: channels of the first stage; stage s has `width * 2**s` (times 4 out of a bottleneck).
        stem: 'imagenet' = 7x7 stride 2 + 3x3 max-pool; 'space_to_depth' = the same numbers and parameters computed as
            a 4x4 convolution of 2x2 pixel blocks (for matrix units that starve on 1 or 3 channels; even image sides
            only); 'stride4' = 7x7 stride 4, no pooling, cheaper for narrow trunks (image sides divisible by 4);
            'small' = 3x3 stride 1, no pooling, for images of 32-64 pixels.
        stage_sizes, widths, strides: per stage overrides; three stage sizes cut the trunk after stage 3.
        zero_init_last_bn: zero scale in the last norm of each block, so that blocks start as the identity.
        in_channels: channels of the stored stem kernel.
        colours: what a one-channel image is in each of them, `factor * grey + offset`; without, the same in all.
        bn_*: see `medvlp_jax.layers.norm.BatchNorm`.
        remat: recompute each block in the backward pass.
        dtype: compute dtype; parameters stay float32.
    """

    depth: str = "50"
    width: int = 64
    stem: Literal["imagenet", "small", "space_to_depth", "stride4"] = "imagenet"
    block: Literal["basic", "bottleneck"] | None = None
    stage_sizes: Sequence[int] | None = None
    widths: Sequence[int] | None = None
    strides: Sequence[int] | None = None
    zero_init_last_bn: bool = False
    in_channels: int = 3
    colours: Colours = ()
    bn_scope: StatsScope = "global"
    bn_group_size: int = 0
    bn_views: int = 1
    bn_momentum: float = 0.9
    bn_epsilon: float = 1e-5
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        """Features of normalised images.

        Args:
            image: [N, H, W, 1 or in_channels] float.
            train: batch statistics (and mutable `batch_stats`) instead of running ones.

        Returns:
            'stage1' ... 'stage4' [N, H/4.., W/4.., C] in `dtype`; 'pooled' [N, C] float32, the mean of the last stage.

        Raises:
            ValueError: unknown depth, stem or block, or an image the stem cannot take.
        """
        block, stage_sizes, stage_widths, stage_strides = self.plan()
        norm = functools.partial(
            BatchNorm,
            momentum=self.bn_momentum,
            epsilon=self.bn_epsilon,
            stats_scope=self.bn_scope,
            group_size=self.bn_group_size,
            views=self.bn_views,
            dtype=self.dtype,
        )
        stem = Stem(self.width, self.stem, self.in_channels, self.colours, self.dtype, name="stem_conv")
        x = stem(image)
        x = relu(norm(name="stem_norm")(x, train=train))
        if self.stem in ("imagenet", "space_to_depth"):
            x = max_pool_3x3(x)

        block_class = {"basic": BasicBlock, "bottleneck": Bottleneck}[block]
        if self.remat:
            block_class = nn.remat(block_class, static_argnums=(2,))
        levels: dict[str, jax.Array] = {}
        plan = zip(stage_sizes, stage_widths, stage_strides, strict=True)
        for s, (size, width, stride) in enumerate(plan, start=1):
            for b in range(size):
                x = block_class(
                    features=width,
                    stride=stride if b == 0 else 1,
                    norm=norm,
                    zero_init_last_bn=self.zero_init_last_bn,
                    dtype=self.dtype,
                    name=f"stage{s}_block{b}",
                )(x, train)
            levels[f"stage{s}"] = x
        levels["pooled"] = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
        return levels

    @nn.nowrap
    def plan(self) -> tuple[str, tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Block, and per stage: number of blocks, width, stride. Raises: ValueError as `__call__`."""
        if str(self.depth) not in DEPTHS:
            raise ValueError(f"ResNet depth={self.depth!r} is unknown. Choose one of {', '.join(DEPTHS)}.")
        block, stage_sizes = DEPTHS[str(self.depth)]
        block = self.block or block
        if block not in EXPANSION:
            raise ValueError(f"ResNet block={block!r} is unknown. Choose one of {', '.join(EXPANSION)}.")
        stage_sizes = tuple(self.stage_sizes or stage_sizes)
        widths = tuple(self.widths or [self.width * 2**s for s in range(len(stage_sizes))])
        strides = tuple(self.strides or [1] + [2] * (len(stage_sizes) - 1))
        if not len(widths) == len(strides) == len(stage_sizes):
            raise ValueError(
                f"ResNet got stage_sizes={stage_sizes}, widths={widths}, strides={strides}: lengths differ."
            )
        return block, stage_sizes, widths, strides


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    features: int
    stride: int
    norm: Any
    zero_init_last_bn: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        conv = functools.partial(Conv, dtype=self.dtype)
        y = conv(self.features, 3, self.stride, name="conv1")(x)
        y = relu(self.norm(name="norm1")(y, train=train))
        y = conv(self.features, 3, name="conv2")(y)
        norm = self.norm(name="norm2", scale_init=_last_scale_init(self.zero_init_last_bn))
        return norm(y, train=train, shortcut=_shortcut(x, y.shape[-1], self.stride, conv, self.norm, train))


class Bottleneck(nn.Module):
    """1x1 down, 3x3 (which carries the stride), 1x1 up by 4, and a shortcut."""

    features: int
    stride: int
    norm: Any
    zero_init_last_bn: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        conv = functools.partial(Conv, dtype=self.dtype)
        y = conv(self.features, 1, name="conv1")(x)
        y = relu(self.norm(name="norm1")(y, train=train))
        y = conv(self.features, 3, self.stride, name="conv2")(y)
        y = relu(self.norm(name="norm2")(y, train=train))
        wide = conv(self.features * EXPANSION["bottleneck"], 1, name="conv3")
        norm = self.norm(name="norm3", scale_init=_last_scale_init(self.zero_init_last_bn))
        return _conv_norm(wide, norm, y, train, _shortcut(x, wide.features, self.stride, conv, self.norm, train))


def _conv_norm(
    conv: "Conv", norm: BatchNorm, x: jax.Array, train: bool, shortcut: jax.Array | None = None
) -> jax.Array:
    """`norm(conv(x))` of a 1x1 convolution; in bfloat16 training by the moments of x where that moves fewer bytes.

    With a shortcut the end of a residual block. No moments on GPUs, whose convolutions end without the normalisation
    that a TPU's carry along; nothing was measured there.
    """
    widens = conv.size == 1 and conv.stride == 1 and conv.features > x.shape[-1]
    everywhere = norm.stats_scope == "global" and train and jax.default_backend() != "gpu"
    if widens and everywhere and conv.dtype == jnp.bfloat16:
        return norm(x.astype(conv.dtype), train=True, kernel=conv(x, kernel_only=True), shortcut=shortcut)
    return norm(conv(x), train=train, shortcut=shortcut)


def _last_scale_init(zero: bool):
    return nn.initializers.zeros if zero else nn.initializers.ones


def _shortcut(x: jax.Array, features: int, stride: int, conv, norm, train: bool) -> jax.Array:
    if stride == 1 and x.shape[-1] == features:
        return x
    return _conv_norm(conv(features, 1, stride, name="shortcut_conv"), norm(name="shortcut_norm"), x, train)


class Conv(nn.Module):
    """Bias-free convolution with symmetric padding `(size - 1) / 2`; kernel [size, size, in, out]."""

    features: int
    size: int
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, kernel_only: bool = False) -> jax.Array:
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", _kernel_init, shape, jnp.float32).astype(self.dtype)
        if kernel_only:
            return kernel
        return square_conv(x.astype(self.dtype), kernel, self.stride)


class Stem(nn.Module):
    """First convolution; the kernel is always stored as torchvision stores it (7x7, or 3x3 for 'small')."""

    features: int
    form: str
    in_channels: int = 3
    colours: Colours = ()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        if self.form not in STEMS:
            raise ValueError(f"ResNet stem={self.form!r} is unknown. Choose one of {', '.join(STEMS)}.")
        check_channels("ResNet", image, self.in_channels, self.colours)
        size = 3 if self.form == "small" else 7
        kernel = self.param("kernel", _kernel_init, (size, size, self.in_channels, self.features), jnp.float32)
        stride = {"small": 1, "imagenet": 2, "space_to_depth": 2, "stride4": 4}[self.form]
        conv = functools.partial(
            square_conv if self.form in ("small", "imagenet") else space_to_depth_conv, stride=stride
        )
        if image.shape[-1] == self.in_channels:
            return conv(image.astype(self.dtype), kernel.astype(self.dtype))
        return grey_conv(conv, image, kernel, self.colours or ((1.0, 0.0),) * self.in_channels, self.dtype)


def space_to_depth_conv(x: jax.Array, kernel: jax.Array, stride: int = 2) -> jax.Array:
    """The 7x7 padding 3 convolution of stride 2 or 4 as one of stride 1 over stride x stride pixel blocks.

    Equal up to rounding. Raises: ValueError for image sides that do not split into blocks.
    """
    n, h, w, c = x.shape
    if h % stride or w % stride:
        raise ValueError(
            f"ResNet stem with {stride}x{stride} pixel blocks needs image sides divisible by {stride}, got {h}x{w}. "
            "Use stem='imagenet'."
        )
    x = x.reshape(n, h // stride, stride, w // stride, stride, c).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(n, h // stride, w // stride, stride * stride * c)
    kernel = jnp.pad(kernel, ((1, 0), (1, 0), (0, 0), (0, 0)))  # 8x8, whose taps start on a block
    taps = 8 // stride
    kernel = kernel.reshape(taps, stride, taps, stride, c, -1).transpose(0, 2, 1, 3, 4, 5)
    kernel = kernel.reshape(taps, taps, stride * stride * c, -1)
    padding = [(taps // 2, taps // 2 - 1)] * 2
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def max_pool_3x3(x: jax.Array) -> jax.Array:
    """3x3 max-pool of NHWC with stride 2 and -inf padding of 1."""
    return jax.lax.platform_dependent(x, cpu=_max_of_slices, default=_max_of_windows)


def _max_of_windows(x: jax.Array) -> jax.Array:
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0)))


def _max_of_slices(x: jax.Array) -> jax.Array:
    """A maximum of shifted slices, rows first: its gradient is elementwise, that of a window a scatter, slow on CPU.

    Equal maxima share the gradient; a window and torch give it to the first.
    """
    h, w = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    x = jnp.maximum(jnp.maximum(x[:, 0:h:2], x[:, 1 : h + 1 : 2]), x[:, 2 : h + 2 : 2])
    return jnp.maximum(jnp.maximum(x[:, :, 0:w:2], x[:, :, 1 : w + 1 : 2]), x[:, :, 2 : w + 2 : 2])
