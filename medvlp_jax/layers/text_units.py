"""From word pieces to units of text: words (GLoRIA, MGCA) and sentences (LoVT), by segment ids of static shape.

A segment id says to which unit a piece belongs, -1 to none; `data.tokenizer` makes them. Words: [CLS] is 0, words are
1..n, [SEP] is n + 1.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

REDUCTIONS = ("sum", "mean", "max")


def drop_unclosed(segment_BxL: Int[Array, "B L"]) -> Int[Array, "B L"]:
    """Segments of words without the [SEP] and the last word of a text that fills all L positions.

    Source: HKU-MedAI/MGCA@680fe4a, whose loop over pieces ends one position early.
    """
    last_Bx1 = segment_BxL[:, -1:]
    return jnp.where((last_Bx1 < 0) | (segment_BxL < last_Bx1 - 1), segment_BxL, -1)


def unit_mask(segment_BxL: Int[Array, "B L"], units: int, *, skip: tuple[int, int] = (0, 0)) -> Bool[Array, "B U"]:
    """Which of `units` units there are, but for `skip[0]` units at the start and `skip[1]` at the end of every text.

    `skip=(1, 1)` are the words without [CLS] and [SEP], `(0, 1)` keeps [CLS]. A text without pieces has no units.
    """
    index_U = np.arange(units)
    return (index_U >= skip[0]) & (index_U <= segment_BxL.max(axis=1)[:, None] - skip[1])


def segment_reduce(
    piece_BxLxE: Float[Array, "B L E"], segment_BxL: Int[Array, "B L"], units: int, how: str
) -> Float[Array, "B U E"]:
    """One vector per unit from those of its pieces; units without pieces are zero.

    Args:
      segment_BxL: unit of every piece; ids outside 0..units - 1 belong to none.
      units: U, static.
      how: `sum`, `mean` or `max` (of every number; the gradient goes to the first piece that has it).

    Returns: in the dtype of the pieces; sums are accumulated in float32.
    Raises: ValueError for another reduction.
    """
    if how not in REDUCTIONS:
        raise ValueError(f"Unknown reduction {how!r} of pieces to units. Choose one of {', '.join(REDUCTIONS)}.")
    own_BxUxL = segment_BxL[:, None, :] == jnp.arange(units)[None, :, None]
    if how == "max":
        masked_BxUxLxE = jnp.where(own_BxUxL[..., None], lax.stop_gradient(piece_BxLxE)[:, None], -jnp.inf)
        index_BxUxE = jnp.argmax(masked_BxUxLxE, axis=2)  # fused: U x L x E numbers are never there at once
        unit_BxUxE = jnp.take_along_axis(piece_BxLxE, index_BxUxE, axis=1)
        return jnp.where(jnp.any(own_BxUxL, axis=2)[..., None], unit_BxUxE, 0)
    # Products with ones and zeros: exact, and their gradient is a product again instead of a scatter.
    unit_BxUxE = jnp.einsum(
        "bul,ble->bue",
        own_BxUxL.astype(piece_BxLxE.dtype),
        piece_BxLxE,
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
    if how == "mean":
        unit_BxUxE = unit_BxUxE / jnp.maximum(jnp.sum(own_BxUxL, axis=2), 1)[..., None]
    return unit_BxUxE.astype(piece_BxLxE.dtype)


def unit_mean(
    unit_BxUxE: Float[Array, "B U E"], mask_BxU: Bool[Array, "B U"], *, over_padding: bool = False
) -> Float[Array, "B E"]:
    """Mean of the real units, zero where there are none; `over_padding` divides their sum by U, as GLoRIA (text vector)
    and LoVT (query of the pooling) do.
    """
    total_BxE = jnp.sum(jnp.where(mask_BxU[..., None], unit_BxUxE, 0).astype(jnp.float32), axis=1)
    count_Bx1 = unit_BxUxE.shape[1] if over_padding else jnp.maximum(jnp.sum(mask_BxU, axis=1, keepdims=True), 1)
    return (total_BxE / count_Bx1).astype(unit_BxUxE.dtype)


def unit_attention(
    attention_BxL: Float[Array, "B L"], segment_BxL: Int[Array, "B L"], units: int, *, following_piece: bool = False
) -> Float[Array, "B U"]:
    """Attention of every unit: the sum over its pieces, float32.

    Args:
      attention_BxL: e.g. what [CLS] pays to every piece in the last layer, mean over heads.
      following_piece: every piece counts with the attention of the piece after it, as in MGCA's released code.

    Source: HKU-MedAI/MGCA@680fe4a, the merging of tokens.
    """
    if following_piece:
        attention_BxL = jnp.pad(attention_BxL[:, 1:], ((0, 0), (0, 1)))
    return segment_reduce(attention_BxL.astype(jnp.float32)[..., None], segment_BxL, units, "sum")[..., 0]
