"""Attention between the units of an image and those of its report, both ways with the same projections (LoVT)."""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from medvlp_jax.layers.attention_pool import masked_softmax
from medvlp_jax.layers.norm import BatchNorm


class Seen(NamedTuple):
    """What units see of the other side, and how they look at it.

    region [B, R, D]: per region, from the sentences; sentence [B, M, D]: per sentence, from the regions; float32.
    region_attention [B, R, M], sentence_attention [B, M, R]: float32, rows sum to one; zero for padded sentences.
    """

    region: Array
    sentence: Array
    region_attention: Array
    sentence_attention: Array


class SharedCrossAttention(nn.Module):
    """Single-head attention of regions over sentences and back; projections and output BatchNorm are shared.

    Scores are `<P region, P sentence> / sqrt(D)` with one projection for queries and keys of both sides, so one matrix
    serves both directions. Attended values go through the output projection and the BatchNorm, regions first: running
    averages are updated twice per step.

    Attributes:
      width: D, of both sides and of what they see.
      norm: fields of `BatchNorm` (scope, group_size, ...).
      mask_statistics: padded sentences stay out of the batch statistics (the released code lets them in).
      dtype: compute type; softmax and statistics are float32.

    Source: philip-mueller/lovt@f548985, `CrossAttention` with `symmetric`.
    """

    width: int
    norm: dict[str, Any]
    mask_statistics: bool = True
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        init = nn.initializers.variance_scaling(1.0, "fan_out", "normal")
        self.key, self.value, self.out = (
            nn.Dense(self.width, kernel_init=init, dtype=self.dtype, name=name) for name in ("key", "value", "out")
        )
        self.output_norm = BatchNorm(**self.norm, dtype=jnp.float32, name="norm")

    def __call__(
        self,
        region_BxRxD: Float[Array, "B R D"],
        sentence_BxMxD: Float[Array, "B M D"],
        mask_BxM: Bool[Array, "B M"],
        *,
        train: bool,
        valid_B: Bool[Array, " B"] | None = None,
    ) -> Seen:
        """Args: both sides in one width D; mask_BxM real sentences; valid_B samples that may enter the statistics."""
        score_BxRxM = jnp.einsum(
            "brd,bmd->brm", self.key(region_BxRxD), self.key(sentence_BxMxD), preferred_element_type=jnp.float32
        ) / math.sqrt(self.width)
        region_attention_BxRxM = masked_softmax(score_BxRxM, mask_BxM[:, None, :])
        sentence_attention_BxMxR = masked_softmax(score_BxRxM.swapaxes(1, 2), mask_BxM[..., None])
        of_region_BxRxD = self.out(region_attention_BxRxM.astype(self.dtype) @ self.value(sentence_BxMxD))
        of_sentence_BxMxD = self.out(sentence_attention_BxMxR.astype(self.dtype) @ self.value(region_BxRxD))
        counted_BxM = mask_BxM if self.mask_statistics else jnp.ones_like(mask_BxM)
        if valid_B is not None:
            counted_BxM = counted_BxM & valid_B[:, None]
        return Seen(
            self.output_norm(of_region_BxRxD, train=train, valid_N=valid_B).astype(jnp.float32),
            self.output_norm(of_sentence_BxMxD, train=train, valid_N=counted_BxM).astype(jnp.float32),
            region_attention_BxRxM,
            sentence_attention_BxMxR,
        )

    def asking(self, unit_NxUxD: Float[Array, "N U D"]) -> Float[Array, "N U D"]:
        """Units as scores compare them: products of both sides' are the scores, their softmax the attention."""
        return self.key(unit_NxUxD).astype(jnp.float32) / self.width**0.25

    def showing(self, unit_NxUxD: Float[Array, "N U D"]) -> Float[Array, "N U D"]:
        """What units show in evaluation: their mean by an attention that sums to one is what is seen of them."""
        return self.output_norm(self.out(self.value(unit_NxUxD)), train=False).astype(jnp.float32)
