"""HBM traffic of a training step with one of its pieces computed in another way: the same numbers, up to rounding.

Each variant replaces a piece for the time of one compile. The tables are those of `benchmarks/scaling.py`.
"""

import contextlib
import math
from collections.abc import Iterator
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp

from medvlp_jax.encoders import resnet
from medvlp_jax.layers import channel_tokens, norm
from medvlp_jax.layers.head_projection import HeadProjection
from medvlp_jax.methods import imitate


class PaddedAttention(channel_tokens.ChannelAttention):
    """`ChannelAttention` as it is usually written: tokens padded, positions added, CLS joined, padding masked."""

    @nn.compact
    def __call__(self, token_BxKxT):
        batch, count, width = token_BxKxT.shape
        heads, head_dim = self.heads, width // self.heads
        cls_T = self.param("cls", nn.initializers.zeros, (width,))
        position_PxT = self.param("positions", nn.initializers.zeros, (self.tokens + 1, width))
        padded_BxNxT = jnp.pad(token_BxKxT, ((0, 0), (0, self.tokens - count), (0, 0)))
        x_BxNxT = (padded_BxNxT + position_PxT[1:]).astype(self.dtype)
        cls_T = (cls_T + position_PxT[0]).astype(self.dtype)
        x_BxPxT = jnp.concatenate([x_BxNxT, jnp.broadcast_to(cls_T, (batch, 1, width))], axis=1)
        init = nn.initializers.zeros
        parts = [HeadProjection(heads, head_dim, True, init, name=name)(width) for name in ("query", "key", "value")]
        (query_Txhxd, query_hxd), (key_Txhxd, key_hxd), (value_Txhxd, value_hxd) = jax.tree.map(
            lambda x: x.astype(self.dtype), parts
        )
        query_hxd = (jnp.einsum("t,thd->hd", cls_T, query_Txhxd) + query_hxd) / math.sqrt(head_dim)
        scores_BxhxP = jnp.einsum("bpt,th->bhp", x_BxPxT, jnp.einsum("hd,thd->th", query_hxd, key_Txhxd))
        scores_BxhxP = scores_BxhxP.astype(jnp.float32) + jnp.sum(query_hxd * key_hxd, axis=-1)[:, None]
        if self.mask_padding:
            position_P = jnp.arange(self.tokens + 1)
            scores_BxhxP = jnp.where((position_P < count) | (position_P == self.tokens), scores_BxhxP, -1e9)
        weight_BxhxP = jax.nn.softmax(scores_BxhxP, axis=-1).astype(self.dtype)
        mixed_BxhxT = jnp.einsum("bhp,bpt->bht", weight_BxhxP, x_BxPxT)
        mixed_Bxhxd = jnp.einsum("bht,thd->bhd", mixed_BxhxT, value_Txhxd) + value_hxd
        return cls_T + nn.DenseGeneral(width, axis=(-2, -1), dtype=self.dtype, name="out")(mixed_Bxhxd)


def _two_pass_moments(x, axes, valid, near, moments=norm._moments):
    return moments(x.astype(jnp.float32), axes, valid, near)


PADDED = (imitate, "ChannelAttention", PaddedAttention)
SLICES = (resnet, "_max_of_windows", resnet._max_of_slices)
TWO_PASS = (norm, "_moments", _two_pass_moments)
OUTPUT_MOMENTS = (
    (resnet, "_conv_norm", lambda conv, norm, x, train: norm(conv(x), train=train)),
    (resnet, "relu", nn.relu),
)
# row -> what is replaced, and fields of the config
VARIANTS = {
    "as first compiled for a TPU": ((PADDED, SLICES, TWO_PASS, *OUTPUT_MOMENTS), {}),
    "BatchNorm of bfloat16 takes its statistics in one pass": ((PADDED, SLICES, *OUTPUT_MOMENTS), {}),
    "max-pool as a window, its gradient as XLA's scatter": ((PADDED, *OUTPUT_MOMENTS), {}),
    "attention of the read branch without padding or joining tokens": (OUTPUT_MOMENTS, {}),
    "widening 1×1 convolutions normalised by the moments of their input": ((), {}),
    "(for comparison: BatchNorm frozen, another computation)": (OUTPUT_MOMENTS, {"model.bn.scope": "frozen"}),
}


@contextlib.contextmanager
def variant(name: str) -> Iterator[dict[str, object]]:
    """The pieces of one row in place; gives the config fields that belong to it."""
    replaced, fields = VARIANTS[name]
    with contextlib.ExitStack() as stack:
        for module, attribute, other in replaced:
            stack.enter_context(mock.patch.object(module, attribute, other))
        yield fields
