"""Attention pooling with the mean unit as query (LoVT): one vector per image or report, and the share of every unit."""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from medvlp_jax.layers.head_projection import HeadProjection
from medvlp_jax.layers.heads import symmetric_uniform
from medvlp_jax.layers.text_units import unit_mean


class Pooled(NamedTuple):
    """vector [B, E], in the compute type; weight [B, U], float32: attention, mean over heads, sums to one.

    part [B, U, E]: what each unit contributes to the vector, which is their mean; None unless asked for.
    """

    vector: Array
    weight: Array
    part: Array | None = None


def masked_softmax(score: Float[Array, "*B U"], mask: Bool[Array, "*B U"]) -> Float[Array, "*B U"]:
    """Softmax over the last axis in float32, over entries that the mask allows; zeros where it allows none."""
    weight = jax.nn.softmax(jnp.where(mask, score.astype(jnp.float32), -1e30), axis=-1)
    return jnp.where(mask, weight, 0.0)


class AttentionPool(nn.Module):
    """Multi-head attention of the mean unit over all units, as `torch.nn.MultiheadAttention` computes it.

    There is one query per sample, and scores and mixture are linear in the units: the query is projected back to the
    units' width and the mixture to the output, instead of every unit to keys and values.

    Attributes:
      heads: must divide the width E of the units.
      mean_over_padding: the query's mean divides by U, padding included, as released: it shrinks with the padding.
      dtype: compute type; parameters are float32.

    Source: philip-mueller/lovt@f548985, `GlobalAvgAttentionAggregator`.
    """

    heads: int = 8
    mean_over_padding: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, unit_BxUxE: Float[Array, "B U E"], mask_BxU: Bool[Array, "B U"] | None = None, *, parts: bool = False
    ) -> Pooled:
        """Pools regions (without a mask) or sentences. A sample without units gets weights of zero.

        Args: parts: also what each unit contributes, with the attention taken as it is.

        Raises: ValueError for a width that heads do not divide.
        """
        width = unit_BxUxE.shape[-1]
        if width % self.heads:
            raise ValueError(f"AttentionPool: units of width {width} are not divisible by {self.heads} heads.")
        head_dim = width // self.heads
        # torch initialises the stacked 3E×E projection as one Xavier matrix, and the output like any Linear.
        in_init = symmetric_uniform(math.sqrt(6.0 / (4 * width)))
        (query_Exhxd, query_hxd), (key_Exhxd, key_hxd), (value_Exhxd, value_hxd) = (
            jax.tree.map(
                lambda x: x.astype(self.dtype), HeadProjection(self.heads, head_dim, True, in_init, name=name)(width)
            )
            for name in ("query", "key", "value")
        )
        mask_BxU = jnp.ones(unit_BxUxE.shape[:2], bool) if mask_BxU is None else mask_BxU
        unit_BxUxE = unit_BxUxE.astype(self.dtype)
        mean_BxE = unit_mean(unit_BxUxE, mask_BxU, over_padding=self.mean_over_padding)
        query_Bxhxd = (jnp.einsum("be,ehd->bhd", mean_BxE, query_Exhxd) + query_hxd) / math.sqrt(head_dim)
        back_BxhxE = jnp.einsum("bhd,ehd->bhe", query_Bxhxd, key_Exhxd)
        score_BxhxU = jnp.einsum("bhe,bue->bhu", back_BxhxE, unit_BxUxE)
        score_BxhxU += jnp.einsum("bhd,hd->bh", query_Bxhxd, key_hxd)[..., None]
        weight_BxhxU = masked_softmax(score_BxhxU, mask_BxU[:, None, :])
        mixed_BxhxE = jnp.einsum("bhu,bue->bhe", weight_BxhxU.astype(self.dtype), unit_BxUxE)
        mixed_Bxhxd = jnp.einsum("bhe,ehd->bhd", mixed_BxhxE, value_Exhxd) + value_hxd  # weights sum to one
        out = nn.DenseGeneral(
            width,
            axis=(-2, -1),
            kernel_init=symmetric_uniform(1.0 / math.sqrt(width)),
            dtype=self.dtype,
            name="out",
        )
        pooled = Pooled(out(mixed_Bxhxd), jnp.mean(weight_BxhxU, axis=1))
        if not parts:
            return pooled
        value_BxUxhxd = jnp.einsum("bue,ehd->buhd", unit_BxUxE, value_Exhxd) + value_hxd
        share_BxUxhx1 = unit_BxUxE.shape[1] * weight_BxhxU.swapaxes(1, 2)[..., None].astype(self.dtype)
        return pooled._replace(part=out(share_BxUxhx1 * value_BxUxhxd))
