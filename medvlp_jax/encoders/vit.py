"""Vision transformer (arXiv 2010.11929) with the arithmetic of timm's and transformers' ViT, class token included."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from medvlp_jax.encoders.convolution import Colours, check_channels, colour_channels
from medvlp_jax.encoders.transformer import FeedForward, LayerNorm, SelfAttention, linear_around

# variant -> (width, layers, heads, feed-forward width)
VARIANTS: dict[str, tuple[int, int, int, int]] = {
    "Ti": (192, 12, 3, 768),
    "S": (384, 12, 6, 1536),
    "B": (768, 12, 12, 3072),
    "L": (1024, 24, 16, 4096),
}


class ViT(nn.Module):
    """Pre-norm vision transformer.

    Attributes:
        width, layers, heads, hidden: see `VARIANTS` and `vit`.
        patch: patch side in pixels.
        image: side of the square image the position table is for; other sides go through `resize_positions`.
        in_channels: channels of the stored patch kernel.
        colours: what a one-channel image is in each of them, as in `ResNet`.
        epsilon: of every LayerNorm; 1e-6 in timm, 1e-12 in transformers.
        activation: name as in a transformers config; 'gelu' is the exact form.
        pooler: transformers' tanh pooler of the class token.
        blocks: also return the output of every block.
        attention: also return the attention of the last block.
        remat: recompute each block in the backward pass.
        dtype: compute dtype; parameters stay float32.
    """

    width: int = 384
    layers: int = 12
    heads: int = 6
    hidden: int = 1536
    patch: int = 16
    image: int = 224
    in_channels: int = 3
    colours: Colours = ()
    epsilon: float = 1e-6
    activation: str = "gelu"
    dropout: float = 0.0
    pooler: bool = False
    blocks: bool = False
    attention: bool = False
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> dict[str, jax.Array]:
        """Features of normalised images.

        Args:
            image: [N, image, image, 1 or in_channels] float.
            train: apply dropout (rng 'dropout').

        Returns:
            'patches' [N, h, w, E] and 'cls' [N, E] after the last LayerNorm; 'pooled' [N, E] with `pooler`;
            'block1' ... [N, 1 + h*w, E] before it, class token first, with `blocks`;
            'attention' [N, heads, 1 + h*w, 1 + h*w] float32, rows sum to one, with `attention`; and, unless training,
            'class_parts' [N, h, w, E]: what each patch adds to 'cls', which is their mean, through the last block with
            its attention as it is, all behind that taken as linear around the class token.

        Raises:
            ValueError: an image of another size or number of channels.
        """
        n, height, width = image.shape[:3]
        if (height, width) != (self.image, self.image) or self.image % self.patch:
            raise ValueError(
                f"ViT for {self.image}x{self.image} images in patches of {self.patch} got {height}x{width}. "
                f"Build it with image={height} and pass its position table through resize_positions."
            )
        check_channels("ViT", image, self.in_channels, self.colours)
        if self.colours and image.shape[-1] == 1:
            image = colour_channels(image, self.colours)
        x = PatchEmbedding(self.width, self.patch, self.in_channels, self.dtype, name="patch_embedding")(image)
        grid = self.image // self.patch
        x = x.reshape(n, grid * grid, self.width)
        cls = self.param("cls", nn.initializers.zeros, (1, 1, self.width))
        positions = self.param("positions", nn.initializers.normal(0.02), (1, 1 + grid * grid, self.width))
        x = jnp.concatenate([jnp.broadcast_to(cls, (n, 1, self.width)).astype(x.dtype), x], axis=1)
        x = x + positions.astype(self.dtype)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)

        levels: dict[str, jax.Array] = {}
        block_class = nn.remat(ViTBlock, static_argnums=(2, 3)) if self.remat else ViTBlock
        for i in range(self.layers):
            parts = self.attention and not train and i == self.layers - 1
            x, attention, class_parts = block_class(
                self.heads, self.hidden, self.activation, self.epsilon, self.dropout, self.dtype, name=f"block_{i}"
            )(x, train, parts)
            if self.blocks:
                levels[f"block{i + 1}"] = x
        norm = LayerNorm(self.epsilon, self.dtype, name="norm")
        if class_parts is not None:
            levels["class_parts"] = linear_around(norm, x[:, 0], class_parts).reshape(n, grid, grid, self.width)
        x = norm(x)
        levels["cls"] = x[:, 0]
        levels["patches"] = x[:, 1:].reshape(n, grid, grid, self.width)
        if self.attention:
            levels["attention"] = attention
        if self.pooler:
            levels["pooled"] = jnp.tanh(nn.Dense(self.width, dtype=self.dtype, name="pooler")(x[:, 0]))
        return levels


def vit(name: str, **overrides: Any) -> ViT:
    """Builds e.g. `vit('S/16')`; overrides are fields of `ViT`. Raises ValueError for an unknown variant."""
    variant, _, patch = name.partition("/")
    if variant not in VARIANTS or not patch.isdigit():
        raise ValueError(f"ViT {name!r} is unknown. Write <variant>/<patch>, variant one of {', '.join(VARIANTS)}.")
    width, layers, heads, hidden = VARIANTS[variant]
    return ViT(**{"width": width, "layers": layers, "heads": heads, "hidden": hidden, "patch": int(patch), **overrides})


class PatchEmbedding(nn.Module):
    """Non-overlapping patches through one matrix; kernel [patch, patch, in_channels, E] as a convolution stores it."""

    features: int
    patch: int
    in_channels: int = 3
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        n, height, width, channels = image.shape
        shape = (self.patch, self.patch, self.in_channels, self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        if channels < self.in_channels:
            kernel = jnp.sum(kernel, axis=2, keepdims=True)
        p, h, w = self.patch, height // self.patch, width // self.patch
        x = image.astype(self.dtype).reshape(n, h, p, w, p, channels).transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(n, h, w, p * p * channels) @ kernel.astype(self.dtype).reshape(-1, self.features)
        return x + bias.astype(self.dtype)


class ViTBlock(nn.Module):
    """LayerNorm before attention and before feed-forward, residual around each."""

    heads: int
    hidden: int
    activation: str = "gelu"
    epsilon: float = 1e-6
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, parts: bool) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """Output [N, L, E], attention weights; with `parts` what each other token adds to the first, [N, L - 1, E]."""
        drop = nn.Dropout(self.dropout, deterministic=not train)
        init = nn.initializers.truncated_normal(0.02)
        norm1 = LayerNorm(self.epsilon, self.dtype, name="attention_norm")
        attention = SelfAttention(self.heads, self.dropout, kernel_init=init, dtype=self.dtype, name="attention")
        norm2 = LayerNorm(self.epsilon, self.dtype, name="feed_forward_norm")
        feed = FeedForward(self.hidden, self.activation, kernel_init=init, dtype=self.dtype, name="feed_forward")
        y, weights, *seen = attention(norm1(x), train=train, parts=parts)
        middle = x + drop(y)
        normed = norm2(middle)
        out = middle + drop(feed(normed))
        if not parts:
            return out, weights, None
        part = x[:, :1] + seen[0]
        return out, weights, part + linear_around(feed, normed[:, 0], linear_around(norm2, middle[:, 0], part))


def resize_positions(positions: np.ndarray | jax.Array, grid: int) -> jax.Array:
    """Fits a position table [1, 1 + g*g, E] to a grid x grid map: bicubic, half-pixel centres, class token kept.

    Raises:
        ValueError: the table is not that of a square grid plus a class token.
    """
    tokens, width = positions.shape[1:]
    old = round((tokens - 1) ** 0.5)
    if positions.shape[0] != 1 or old * old != tokens - 1:
        raise ValueError(f"Position table {tuple(positions.shape)} is not [1, 1 + side*side, width].")
    positions = jnp.asarray(positions)
    if old == grid:
        return positions
    table = positions[:, 1:].reshape(1, old, old, width)
    table = jax.image.resize(table, (1, grid, grid, width), "bicubic", antialias=False)
    return jnp.concatenate([positions[:, :1], table.reshape(1, grid * grid, width)], axis=1)
