"""IMITATE's read branch: random channels of all residual stages become tokens, one attention layer summarises them.

Source: arXiv 2310.07355 section III; details as in cheliu-computation/IMITATE-TMI2024@cd1c575.
"""

import functools
import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from medvlp_jax.layers.heads import symmetric_uniform

KEEP = (0.25, 0.15, 0.10, 0.10)  # share of channels drawn from stages 1 to 4
GRID = 16  # every channel map is pooled to GRID x GRID numbers
TOKENS = 512  # the token axis is padded with zeros to this length


def pooling_matrix(size: int, cells: int = GRID) -> np.ndarray:
    """Adaptive average pooling of a line of `size` numbers to `cells` numbers, as a matrix.

    Cell i averages inputs floor(i*size/cells) .. ceil((i+1)*size/cells) - 1, so short lines are enlarged by the same
    rule. Returns: float32 cells×size, rows sum to one.
    """
    matrix = np.zeros((cells, size), np.float32)
    for i in range(cells):
        start, stop = (i * size) // cells, -((-(i + 1) * size) // cells)
        matrix[i, start:stop] = 1.0 / (stop - start)
    return matrix


def kept_channels(channels: Sequence[int], keep: Sequence[float] = KEEP) -> tuple[int, ...]:
    """Channels drawn from each stage, `int(keep * channels)`; (64, 76, 102, 204) for ResNet-50.

    Raises: ValueError when the shares do not match the stages or leave a stage without a channel.
    """
    if len(channels) != len(keep):
        raise ValueError(f"keep={tuple(keep)} names {len(keep)} stages, the trunk has {len(channels)}.")
    counts = tuple(int(share * width) for share, width in zip(keep, channels, strict=True))
    if min(counts) < 1:
        raise ValueError(
            f"keep={tuple(keep)} of {tuple(channels)} channels leaves {counts} tokens per stage; use larger shares."
        )
    return counts


def sample_channels(
    key: Array, channels: Sequence[int], keep: Sequence[float] = KEEP, *, replace: bool = True
) -> tuple[Int[Array, " k"], ...]:
    """One draw of channel indices per stage, shared by all samples of a pass.

    Args:
      key: PRNG key.
      channels: width of each stage.
      keep: share drawn from each stage.
      replace: with replacement (as released) or distinct channels.
    """
    draws = []
    for stage, (width, count) in enumerate(zip(channels, kept_channels(channels, keep), strict=True)):
        stage_key = jax.random.fold_in(key, stage)
        if replace:
            draws.append(jax.random.randint(stage_key, (count,), 0, width))
        else:
            draws.append(jax.random.permutation(stage_key, width)[:count])
    return tuple(draws)


def channel_tokens(
    stages: Sequence[Float[Array, "B H W C"]], indices: Sequence[Int[Array, " k"]], *, grid: int = GRID
) -> Float[Array, "B K T"]:
    """Tokens of the chosen channels: each map pooled to grid×grid and flattened row by row.

    Args:
      stages: feature maps of the stages, NHWC.
      indices: chosen channels per stage.
      grid: side of the pooled map.

    Returns: B×K×grid², K the number of chosen channels over all stages, in stage order.
    """
    tokens = []
    for map_BxHxWxC, index_k in zip(stages, indices, strict=True):
        _, height, width, channels = map_BxHxWxC.shape
        dtype = map_BxHxWxC.dtype
        # Selection as a product with one-hot columns: exact, and its gradient is a matmul instead of a scatter.
        pick_CxK = jax.nn.one_hot(index_k, channels, dtype=dtype, axis=0)
        chosen_BxHxWxK = jnp.matmul(map_BxHxWxC, pick_CxK, precision=lax.Precision.HIGHEST)
        rows_GxH = jnp.asarray(pooling_matrix(height, grid), dtype)
        columns_GxW = jnp.asarray(pooling_matrix(width, grid), dtype)
        pooled_BxKxGxG = jnp.einsum(
            "gh,bhwk,fw->bkgf", rows_GxH, chosen_BxHxWxK, columns_GxW, precision=lax.Precision.HIGHEST
        )
        tokens.append(pooled_BxKxGxG.reshape(pooled_BxKxGxG.shape[0], len(index_k), grid * grid))
    return jnp.concatenate(tokens, axis=1)


class ChannelAttention(nn.Module):
    """Summary of the tokens: the CLS row of `x + attention(x)`; no LayerNorm, no feed-forward, one layer.

    CLS stands behind the tokens but reads position row 0; tokens read rows 1 to `tokens`. Only the CLS row is used
    afterwards, so only its query is computed: the same numbers for 1/(tokens+1) of the attention.

    Attributes:
      tokens: length that the token axis is zero-padded to.
      heads: attention heads; must divide the token width.
      mask_padding: leave the padded tokens out of the softmax (the released code lets them in).
      dtype: compute type; softmax is float32.
    """

    tokens: int = TOKENS
    heads: int = 4
    mask_padding: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, token_BxKxT: Float[Array, "B K T"]) -> Float[Array, "B T"]:
        """Args: token_BxKxT with K ≤ tokens. Returns: B×T. Raises: ValueError when K exceeds `tokens`."""
        batch, count, width = token_BxKxT.shape
        if count > self.tokens:
            raise ValueError(f"{count} channel tokens do not fit {self.tokens} positions; lower keep or raise tokens.")
        if width % self.heads:
            raise ValueError(f"Token width {width} is not divisible by {self.heads} heads.")
        cls_T = self.param("cls", nn.initializers.zeros, (width,))
        position_PxT = self.param("positions", nn.initializers.zeros, (self.tokens + 1, width))
        padded_BxNxT = jnp.pad(token_BxKxT, ((0, 0), (0, self.tokens - count), (0, 0)))
        x_BxNxT = (padded_BxNxT + position_PxT[1:]).astype(self.dtype)
        cls_Bx1xT = jnp.broadcast_to((cls_T + position_PxT[0]).astype(self.dtype), (batch, 1, width))
        x_BxPxT = jnp.concatenate([x_BxNxT, cls_Bx1xT], axis=1)

        head_shape = (self.heads, width // self.heads)
        # torch initialises the stacked 3T×T projection as one Xavier matrix and the output like any Linear.
        in_init = symmetric_uniform(math.sqrt(6.0 / (4 * width)))
        dense = functools.partial(nn.DenseGeneral, head_shape, kernel_init=in_init, dtype=self.dtype)
        query_Bx1xhxd = dense(name="query")(cls_Bx1xT)
        key_BxPxhxd, value_BxPxhxd = dense(name="key")(x_BxPxT), dense(name="value")(x_BxPxT)
        scores_Bxhx1xP = jnp.einsum("bqhd,bphd->bhqp", query_Bx1xhxd, key_BxPxhxd).astype(jnp.float32)
        scores_Bxhx1xP = scores_Bxhx1xP / math.sqrt(head_shape[1])
        if self.mask_padding:
            position_P = jnp.arange(self.tokens + 1)
            real_P = (position_P < count) | (position_P == self.tokens)
            scores_Bxhx1xP = jnp.where(real_P, scores_Bxhx1xP, -1e9)
        weight_Bxhx1xP = jax.nn.softmax(scores_Bxhx1xP, axis=-1).astype(self.dtype)
        mixed_Bx1xhxd = jnp.einsum("bhqp,bphd->bqhd", weight_Bxhx1xP, value_BxPxhxd)
        out_Bx1xT = nn.DenseGeneral(
            width,
            axis=(-2, -1),
            kernel_init=symmetric_uniform(1.0 / math.sqrt(width)),
            dtype=self.dtype,
            name="out",
        )(mixed_Bx1xhxd)
        return (cls_Bx1xT + out_Bx1xT)[:, 0]
