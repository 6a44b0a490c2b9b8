"""Pairwise contrastive terms as global-view programs.

Written over the whole batch: under `jit` with embeddings sharded on the batch axis, XLA places the collectives and the
gradients are exact, with no scale factors to get wrong.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

# Finite on purpose: -inf times a zero target is NaN.
MASKED_LOGIT = -1e9


def unit_rows(x_BxD: Float[Array, "B D"], *, eps: float = 1e-12) -> Float[Array, "B D"]:
    """Rows scaled to length one in float32; rows shorter than `eps` stay (almost) zero and get no NaN gradient."""
    x_BxD = x_BxD.astype(jnp.float32)
    squared_Bx1 = jnp.sum(x_BxD * x_BxD, axis=-1, keepdims=True)
    return x_BxD * lax.rsqrt(jnp.maximum(squared_Bx1, eps * eps))


def similarity(x_BxD: Float[Array, "B D"], y_BxD: Float[Array, "B D"]) -> Float[Array, "B B"]:
    """Cosine of every row of `x` with every row of `y`, float32 in [-1, 1], also on accelerators that round matmuls."""
    return jnp.matmul(unit_rows(x_BxD), unit_rows(y_BxD).T, precision=lax.Precision.HIGHEST)


def soft_cross_entropy(
    logits_BxB: Float[Array, "B B"],
    targets_BxB: Float[Array, "B B"],
    pair_mask_BxB: Bool[Array, "B B"] | None = None,
) -> Float[Array, " B"]:
    """Cross entropy of every row with non-negative targets that need not sum to one.

    Row loss is `(sum_j T_ij) * logsumexp_j(S_ij) - sum_j T_ij S_ij`, which streams over tiles.

    Args:
      logits_BxB: rows are queries, columns candidates.
      targets_BxB: non-negative weights.
      pair_mask_BxB: False removes a pair from numerator and softmax.

    Returns: row losses, float32. A row without any candidate gives zero.
    """
    logits_BxB = logits_BxB.astype(jnp.float32)
    targets_BxB = targets_BxB.astype(jnp.float32)
    if pair_mask_BxB is not None:
        targets_BxB = jnp.where(pair_mask_BxB, targets_BxB, 0.0)
        logits_BxB = jnp.where(pair_mask_BxB, logits_BxB, MASKED_LOGIT)
    lse_B = jax.nn.logsumexp(logits_BxB, axis=1)
    return jnp.sum(targets_BxB, axis=1) * lse_B - jnp.sum(targets_BxB * logits_BxB, axis=1)


def contrastive(
    x_BxD: Float[Array, "B D"],
    y_BxD: Float[Array, "B D"],
    *,
    temperature: float | Float[Array, ""],
    targets_BxB: Float[Array, "B B"] | None = None,
    valid_B: Bool[Array, " B"] | None = None,
    exclude_BxB: Bool[Array, "B B"] | None = None,
) -> Float[Array, ""]:
    """Two-direction contrastive loss, directions summed, averaged over the valid examples.

    `l(x, y) = -1/M sum_i sum_j Y_ij (log softmax_j(A_ij) + log softmax_j(A_ji))`, `A = cos(x, y) / temperature`,
    `Y` the targets (identity when omitted), `M` the number of valid examples.

    Args:
      x_BxD, y_BxD: paired embeddings of any scale; rows are normalised here.
      temperature: positive scalar.
      targets_BxB: non-negative weight of candidate j for query i, in both directions; rows need not sum to one and no
        gradient flows into them.
      valid_B: examples that take part, as rows and as columns. All when omitted.
      exclude_BxB: symmetric, True removes a pair from both softmaxes, e.g. different images with the same report.

    Returns: float32 scalar, zero when no example is valid.
    Source: arXiv 2310.07355 section III; the form with non-normalised targets as in
      cheliu-computation/IMITATE-TMI2024@cd1c575.
    """
    logits_BxB = similarity(x_BxD, y_BxD) / temperature
    batch = logits_BxB.shape[0]
    targets_BxB = jnp.eye(batch) if targets_BxB is None else lax.stop_gradient(targets_BxB)
    pair_mask_BxB = pair_mask(batch, valid_B, exclude_BxB)
    rows_B = soft_cross_entropy(logits_BxB, targets_BxB, pair_mask_BxB)
    columns_B = soft_cross_entropy(logits_BxB.T, targets_BxB, pair_mask_BxB)  # the pair mask is symmetric
    if valid_B is None:
        return jnp.mean(rows_B + columns_B)
    weight_B = valid_B.astype(jnp.float32)
    return jnp.sum(weight_B * (rows_B + columns_B)) / jnp.maximum(jnp.sum(weight_B), 1.0)


def pair_mask(
    batch: int, valid_B: Bool[Array, " B"] | None = None, exclude_BxB: Bool[Array, "B B"] | None = None
) -> Bool[Array, "B B"] | None:
    """Pairs that take part: both valid, not excluded; the diagonal is never excluded. None when all do."""
    mask_BxB = None
    if valid_B is not None:
        mask_BxB = valid_B[:, None] & valid_B[None, :]
    if exclude_BxB is not None:
        kept_BxB = ~exclude_BxB | jnp.eye(batch, dtype=bool)
        mask_BxB = kept_BxB if mask_BxB is None else mask_BxB & kept_BxB
    return mask_BxB


def same_text(hash_B: Array, valid_B: Bool[Array, " B"] | None = None) -> Bool[Array, "B B"]:
    """True where two different examples carry the same text, by equal hash; never on the diagonal."""
    same_BxB = (hash_B[:, None] == hash_B[None, :]) & ~jnp.eye(hash_B.shape[0], dtype=bool)
    if valid_B is not None:
        same_BxB &= valid_B[:, None] & valid_B[None, :]
    return same_BxB
