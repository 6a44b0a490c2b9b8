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

from medvlp_jax.layers.head_projection import HeadProjection
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


def shrink_maps(
    stages: Sequence[Float[Array, "... H W C"]], *, grid: int = GRID
) -> tuple[Float[Array, "... H W C"], ...]:
    """Pools the maps larger than grid×grid, all channels of them.

    Pooling and picking channels commute. Pooled once, large maps need not be read again by every draw of every view,
    and a pick has as many products fewer as the map has pixels fewer.
    """
    return tuple(_pool(stage, grid) if min(stage.shape[-3:-1]) > grid else stage for stage in stages)


def channel_tokens(
    stages: Sequence[Float[Array, "B H W C"]], indices: Sequence[Int[Array, "*draws k"]], *, grid: int = GRID
) -> Float[Array, "B *draws K T"]:
    """Tokens of the chosen channels: each map pooled to grid×grid and flattened row by row.

    Args:
      stages: feature maps of the stages, NHWC; `shrink_maps` of them give the same tokens for less work.
      indices: chosen channels per stage, of one draw or of several, for which every map is read once.
      grid: side of the pooled map.

    Returns: per draw B×K×grid², K the number of chosen channels over all stages, in stage order.
    """
    tokens = []
    for map_BxHxWxC, index_k in zip(stages, indices, strict=True):
        pooled_BxGxGxK = _pool(_chosen(map_BxHxWxC, index_k.reshape(-1)), grid)
        token_BxKxT = pooled_BxGxGxK.reshape(-1, grid * grid, index_k.size).swapaxes(1, 2)
        tokens.append(token_BxKxT.reshape(-1, *index_k.shape, grid * grid))
    return jnp.concatenate(tokens, axis=-2)


@jax.custom_vjp
def _chosen(x: Float[Array, "... C"], index_K: Int[Array, " K"]) -> Float[Array, "... K"]:
    """Channels of x as a product with one-hot columns: exact, and its gradient is a product instead of a scatter.

    On CPU the channels are copied instead, which takes a fifth of the time.
    """
    copied = functools.partial(jnp.take, axis=-1, mode="clip")
    return lax.platform_dependent(x, index_K, cpu=copied, default=lambda x, index_K: _product(x, _columns(index_K, x)))


def _chosen_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, None]:
    index_K, like = saved
    return _product(gradient, _columns(index_K, like).T), None


_chosen.defvjp(lambda x, index_K: (_chosen(x, index_K), (index_K, x)), _chosen_backward)


def _columns(index_K: Array, like: Array) -> Float[Array, "C K"]:
    return jax.nn.one_hot(index_K, like.shape[-1], dtype=like.dtype, axis=0)


def _product(x: Array, matrix: Array) -> Array:
    return jnp.matmul(x, matrix, precision=lax.Precision.HIGHEST)


def _pool(x: Float[Array, "... H W C"], grid: int) -> Float[Array, "... grid grid C"]:
    """Adaptive average pooling, first of rows and then of columns."""
    if x.shape[-3:-1] == (grid, grid):
        return x
    *batch, height, width, channels = x.shape
    x = x.reshape(math.prod(batch), height, width, channels)
    pooled = lax.platform_dependent(
        x, cpu=functools.partial(_pool_on_cpu, grid=grid), default=functools.partial(_pool_elsewhere, grid=grid)
    )
    return pooled.reshape(*batch, grid, grid, channels)


def _pool_on_cpu(x_NxHxWxC: Array, *, grid: int) -> Array:
    count, height, width, channels = x_NxHxWxC.shape
    if height % grid == 0 and width % grid == 0:  # then every place is the mean of a block of its own
        blocks = x_NxHxWxC.reshape(count, grid, height // grid, grid, width // grid, channels)
        return jnp.mean(blocks, axis=(2, 4))
    x = _pool_line(x_NxHxWxC.reshape(count, height, width * channels), grid)
    return _pool_line(x.reshape(count * grid, width, channels), grid).reshape(count, grid, grid, channels)


def _pool_line(x: Float[Array, "N L F"], grid: int) -> Float[Array, "N grid F"]:
    return x if x.shape[1] == grid else _lines_product(x, x.shape[1], grid)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _lines_product(x: Float[Array, "N L F"], length: int, grid: int) -> Float[Array, "N grid F"]:
    """The pooling matrix times every x_LxF. Its gradient multiplies by the transposed matrix, made as such beforehand:
    XLA's CPU product of a batch that contracts the first matrices' rows takes some five times as long."""
    return _batched_product(pooling_matrix(length, grid), x)


_lines_product.defvjp(
    lambda x, length, grid: (_lines_product(x, length, grid), None),
    lambda length, grid, _, gradient: (_batched_product(pooling_matrix(length, grid).T, gradient),),
)


def _batched_product(matrix: np.ndarray, x: Float[Array, "N L F"]) -> Float[Array, "N M F"]:
    # The matrix is repeated for every row of the batch: a batched product leaves x where it is, the plain one
    # transposes it.
    matrices = jnp.broadcast_to(jnp.asarray(matrix, x.dtype), (x.shape[0], *matrix.shape))
    return _product(matrices, x)


def _pool_elsewhere(x_NxHxWxC: Array, *, grid: int) -> Array:
    # Without a reshape in between: accelerators choose layouts themselves, and XLA's fusions of reshapes with products
    # have aborted its GPU compiler (see `encoders/convolution.py`).
    rows, columns = (jnp.asarray(pooling_matrix(size, grid), x_NxHxWxC.dtype) for size in x_NxHxWxC.shape[1:3])
    return jnp.einsum("gh,nhwc,kw->ngkc", rows, x_NxHxWxC, columns, precision=lax.Precision.HIGHEST)


class ChannelAttention(nn.Module):
    """Summary of the tokens: the CLS row of `x + attention(x)`; no LayerNorm, no feed-forward, one layer.

    CLS stands behind the tokens but reads position row 0; tokens read rows 1 to `tokens`. Only the CLS row is used
    afterwards, so only its query is computed, and keys and values never are (see the comment): the same numbers for a
    thousandth of the products.

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
        # torch initialises the stacked 3T×T projection as one Xavier matrix and the output like any Linear.
        heads, head_dim = self.heads, width // self.heads
        in_init = symmetric_uniform(math.sqrt(6.0 / (4 * width)))
        query, key, value = (
            HeadProjection(heads, head_dim, True, in_init, name=name)(width) for name in ("query", "key", "value")
        )
        (query_Txhxd, key_Txhxd, value_Txhxd), (query_hxd, key_hxd, value_hxd) = jax.tree.map(
            lambda x: x.astype(self.dtype), tuple(zip(query, key, value, strict=True))
        )
        # All rows share one query, and scores and mixture are linear in the rows: project the query back to token width
        # and the mixture once, instead of every token to keys and values. Rows are token + position, and padding and
        # CLS are the same for all samples, so nothing as large as the tokens is ever added, padded or joined.
        token_BxKxT, position_PxT = token_BxKxT.astype(self.dtype), position_PxT.astype(self.dtype)
        cls_T = (cls_T + position_PxT[0]).astype(self.dtype)
        query_hxd = (jnp.einsum("t,thd->hd", cls_T, query_Txhxd) + query_hxd) / math.sqrt(head_dim)
        key_Txh = jnp.einsum("hd,thd->th", query_hxd, key_Txhxd)
        shared_LxT = jnp.concatenate([position_PxT[1 + count : 1 + count if self.mask_padding else None], cls_T[None]])
        placed_KxT = position_PxT[1 : count + 1]
        token_score_BxhxK = jnp.einsum("bkt,th->bhk", token_BxKxT, key_Txh).astype(jnp.float32)
        token_score_BxhxK += jnp.einsum("kt,th->hk", placed_KxT, key_Txh).astype(jnp.float32)
        shared_score_hxL = jnp.einsum("lt,th->hl", shared_LxT, key_Txh).astype(jnp.float32)
        shared_score_BxhxL = jnp.broadcast_to(shared_score_hxL, (batch, *shared_score_hxL.shape))
        scores_BxhxN = jnp.concatenate([token_score_BxhxK, shared_score_BxhxL], axis=-1)
        scores_BxhxN += jnp.sum(query_hxd * key_hxd, axis=-1)[:, None].astype(jnp.float32)
        weight_BxhxN = jax.nn.softmax(scores_BxhxN, axis=-1).astype(self.dtype)
        mixed_BxhxT = jnp.einsum("bhk,bkt->bht", weight_BxhxN[..., :count], token_BxKxT)
        mixed_BxhxT += jnp.einsum("bhn,nt->bht", weight_BxhxN, jnp.concatenate([placed_KxT, shared_LxT]))
        mixed_Bxhxd = jnp.einsum("bht,thd->bhd", mixed_BxhxT, value_Txhxd) + value_hxd  # weights sum to one
        out_BxT = nn.DenseGeneral(
            width,
            axis=(-2, -1),
            kernel_init=symmetric_uniform(1.0 / math.sqrt(width)),
            dtype=self.dtype,
            name="out",
        )(mixed_Bxhxd)
        return cls_T + out_BxT
