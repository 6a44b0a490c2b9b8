"""Contrast inside a sample: units of one kind against what they see of the other kind (MGCA, LoVT).

`unit_contrast` is the loss of both; MGCA's token-wise alignment with its weights is here, LoVT's terms are in
`sentence_region`. Nothing leaves its sample, so nothing is communicated.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from medvlp_jax.losses.contrastive import soft_cross_entropy
from medvlp_jax.losses.similarity import product, unit_rows
from medvlp_jax.losses.targets import MASKED


class TokenTerms(NamedTuple):
    """MGCA's two terms, float32 scalars; their sum is its token loss."""

    word: Array
    patch: Array


def unit_contrast(
    unit_BxUxD: Float[Array, "B U D"],
    seen_BxUxD: Float[Array, "B U D"],
    weight_BxU: Float[Array, "B U"],
    *,
    temperature: float,
    target_UxU: Float[Array, "U U"] | None = None,
    keep_BxU: Bool[Array, "B U"] | None = None,
    valid_B: Bool[Array, " B"] | None = None,
    unit_length: tuple[bool, bool] = (True, True),
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Cross entropies of units with what they see, candidates being the units of the same sample; both directions.

    With `s[k, l] = cos(unit_k, seen_l) / temperature` the first is `mean_b sum_k weight_k (logsumexp_l s[k, l] -
    sum_l t[k, l] s[k, l])`, the second the same of `s` transposed, with the same `t` and weights.

    Args:
      unit_BxUxD, seen_BxUxD: vectors of units and of their counterparts, position by position.
      weight_BxU: weight of every unit, used as it is and without gradient; zero for padding.
      target_UxU: rows of weights; identity when omitted.
      keep_BxU: units that are candidates; rows of targets are taken over these and divided by their sum.
      valid_B: samples that count in the mean.
      unit_length: whether units, and counterparts, are normalised (in float32) or taken as they are.

    Returns: two float32 scalars, zero when no sample is valid.
    """
    batch, units = weight_BxU.shape
    keep_BxU = jnp.ones((batch, units), bool) if keep_BxU is None else keep_BxU
    valid_B = jnp.ones(batch, bool) if valid_B is None else valid_B
    target_UxU = jnp.eye(units) if target_UxU is None else jnp.asarray(target_UxU, jnp.float32)
    weight_BxU = lax.stop_gradient(weight_BxU.astype(jnp.float32))
    sides = (unit_BxUxD, seen_BxUxD)
    sides = [unit_rows(x) if on else x.astype(jnp.float32) for x, on in zip(sides, unit_length, strict=True)]

    def of_sample(unit_UxD, seen_UxD, weight_U, keep_U):
        score_UxU = product(unit_UxD, seen_UxD.T) / temperature
        target = jnp.where(keep_U, target_UxU, 0.0)
        target = target / jnp.maximum(jnp.sum(target, axis=1, keepdims=True), 1e-12)
        keep_UxU = jnp.broadcast_to(keep_U, score_UxU.shape)
        return [jnp.sum(weight_U * soft_cross_entropy(s, target, keep_UxU)) for s in (score_UxU, score_UxU.T)]

    losses = jax.vmap(of_sample)(*sides, weight_BxU, keep_BxU)
    count = jnp.maximum(jnp.sum(valid_B), 1)
    return tuple(jnp.sum(jnp.where(valid_B, loss_B, 0.0)) / count for loss_B in losses)


def token_alignment_loss(
    word_BxWxD: Float[Array, "B W D"],
    patch_BxPxD: Float[Array, "B P D"],
    mask_BxW: Bool[Array, "B W"],
    word_weight_BxW: Float[Array, "B W"],
    patch_weight_BxP: Float[Array, "B P"] | None = None,
    *,
    temperature: float = 0.1,
    attention_temperature: float = 0.1,
    padding_is_negative: bool = False,
    normalise_seen_words: bool = True,
    valid_B: Bool[Array, " B"] | None = None,
) -> TokenTerms:
    """MGCA's token-wise alignment: words with the patches they see, patches with the words they see.

    A word sees `normalise(sum_p softmax_p(cos(word, patch_p) / attention_temperature) patch_p)`, a patch the same of
    real words. Both are contrasted with their own counterpart against the others of the sample (`unit_contrast`), each
    term the mean of its two directions.

    Args:
      word_BxWxD, patch_BxPxD: projected words and patches, any scale; they are normalised here.
      mask_BxW: real words ([SEP] counts as one in MGCA).
      word_weight_BxW, patch_weight_BxP: weights that sum to one per sample, see `attention_weights`; uniform over the
        patches when omitted (MGCA with a ResNet).
      padding_is_negative: padding words are candidates of real ones, as released; else they are left out.
      normalise_seen_words: what a patch sees is normalised; the released code does so with a ResNet, not with a ViT.
      valid_B: samples that count; those with a real word, when omitted.

    Returns: `TokenTerms`.
    Source: HKU-MedAI/MGCA@680fe4a, the token-level alignment without attention layers.
    """
    batch, patches = patch_BxPxD.shape[:2]
    word_BxWxD, patch_BxPxD = unit_rows(word_BxWxD), unit_rows(patch_BxPxD)
    valid_B = jnp.any(mask_BxW, axis=1) if valid_B is None else valid_B
    if patch_weight_BxP is None:
        patch_weight_BxP = jnp.full((batch, patches), 1.0 / patches)

    def seen(word_WxD, patch_PxD, mask_W):
        score_WxP = product(word_WxD, patch_PxD.T) / attention_temperature
        of_words_PxW = jax.nn.softmax(jnp.where(mask_W[:, None], score_WxP, MASKED), axis=0).T
        return product(jax.nn.softmax(score_WxP, axis=1), patch_PxD), product(of_words_PxW, word_WxD)

    patches_seen_BxWxD, words_seen_BxPxD = jax.vmap(seen)(word_BxWxD, patch_BxPxD, mask_BxW)
    shared = {"temperature": temperature, "valid_B": valid_B}
    word_weight_BxW = jnp.where(mask_BxW, word_weight_BxW, 0.0)
    keep_BxW = None if padding_is_negative else mask_BxW
    of_words = unit_contrast(word_BxWxD, patches_seen_BxWxD, word_weight_BxW, keep_BxU=keep_BxW, **shared)
    lengths = (True, normalise_seen_words)
    of_patches = unit_contrast(patch_BxPxD, words_seen_BxPxD, patch_weight_BxP, unit_length=lengths, **shared)
    return TokenTerms(0.5 * sum(of_words), 0.5 * sum(of_patches))


def attention_weights(
    attention_BxU: Float[Array, "B U"], *, quantiles: tuple[float, float] = (0.1, 0.9)
) -> Float[Array, "B U"]:
    """Weights of units from the attention they get: clipped to its quantiles, divided by the sum, without gradient.

    Quantiles are those of the entries that are not zero, interpolated linearly; entries of zero (padding) stay zero. A
    sample of zeros alone has weights of zero.

    Args: attention_BxU: not negative, e.g. from `layers.text_units.unit_attention`, or a ViT's from CLS to patches.
    Returns: float32, rows sum to one.
    Source: HKU-MedAI/MGCA@680fe4a, the word and patch weights.
    """
    attention_BxU = lax.stop_gradient(attention_BxU.astype(jnp.float32))
    there_BxU = attention_BxU != 0
    last_Bx1 = jnp.maximum(jnp.sum(there_BxU, axis=1, keepdims=True) - 1, 0)
    sorted_BxU = jnp.sort(jnp.where(there_BxU, attention_BxU, jnp.inf), axis=1)
    low_Bx1, high_Bx1 = (_interpolated(sorted_BxU, share * last_Bx1) for share in quantiles)
    clipped_BxU = jnp.where(there_BxU, jnp.clip(attention_BxU, low_Bx1, high_Bx1), 0.0)
    return clipped_BxU / jnp.maximum(jnp.sum(clipped_BxU, axis=1, keepdims=True), 1e-12)


def _interpolated(sorted_BxU: Array, position_Bx1: Array) -> Array:
    below_Bx1 = jnp.floor(position_Bx1).astype(jnp.int32)
    share_Bx1 = position_Bx1 - below_Bx1
    low_Bx1 = jnp.take_along_axis(sorted_BxU, below_Bx1, axis=1)
    high_Bx1 = jnp.take_along_axis(sorted_BxU, jnp.minimum(below_Bx1 + 1, sorted_BxU.shape[1] - 1), axis=1)
    # Where the position is that of an entry, the next one may be infinite.
    return jnp.where(share_Bx1 > 0, low_Bx1 + share_Bx1 * (high_Bx1 - low_Bx1), low_Bx1)
