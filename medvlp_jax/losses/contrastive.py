"""Pairwise losses of two sets of embeddings, over the global batch.

`score_loss` is the definition, over a matrix of scores. `contrastive` takes embeddings: `dense` through that
definition, as a global-view program (under `jit` with embeddings sharded on the batch axis XLA places the collectives,
and there are no scale factors to get wrong); `chunked` and `ring` by tiles (`streamed`), the same numbers for less
memory.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from medvlp_jax.losses.schedules import Sweep
from medvlp_jax.losses.similarity import product, unit_rows
from medvlp_jax.losses.streamed import Recipe, streamed
from medvlp_jax.losses.targets import MASKED, Targets, given, identity

KINDS = ("softmax", "sigmoid")
DENSE = Sweep()


def contrastive(
    x_NxD: Float[Array, "N D"],
    y_MxD: Float[Array, "M D"],
    *,
    temperature: float | Float[Array, ""],
    targets: Targets | Float[Array, "N M"] | None = None,
    valid_N: Array | None = None,
    valid_M: Array | None = None,
    kind: str = "softmax",
    bias: float | Float[Array, ""] = 0.0,
    directions: tuple[float, float] = (1.0, 1.0),
    dtype: jnp.dtype = jnp.float32,
    sweep: Sweep = DENSE,
) -> Float[Array, ""]:
    """Contrastive loss with `S = cos(x, y) / temperature + bias` and any targets.

    `softmax`: `directions[0] * mean_i(-sum_j T_ij log softmax_j S_ij)` plus `directions[1]` times the same of columns;
    means are over the valid rows (columns), weighted. InfoNCE, and IMITATE's loss (arXiv 2310.07355 section III, whose
    targets need not sum to one).
    `sigmoid`: `mean_i(-sum_j T_ij log sigmoid(S_ij) + (1 - T_ij) log sigmoid(-S_ij))`: SigLIP (arXiv 2303.15343).

    Args:
      x_NxD, y_MxD: embeddings of any scale; rows are normalised here, in float32.
      temperature: positive scalar. bias: scalar. Both may be parameters.
      targets: from `losses.targets`, or a matrix. Of a square matrix T[i, j] is the weight of candidate j for query i
        in both directions. Identity when omitted. No gradient flows into them.
      valid_N, valid_M: bool, or float weights ≥ 0: examples that take part, as rows and as columns; weights multiply
        their losses. `valid_M` is `valid_N` when the batch is square, else everything.
      kind: `softmax` or `sigmoid`.
      directions: weights of the rows' and the columns' losses (softmax alone).
      dtype: of the products' operands; they are accumulated in float32.
      sweep: the schedule.

    Returns: float32 scalar, zero when no example is valid.
    Raises: ValueError for an unknown kind, or sigmoid with directions.
    """
    _check(kind, directions)
    x_NxD, y_MxD = (unit_rows(z).astype(dtype) for z in (x_NxD, y_MxD))
    scale, bias = 1.0 / jnp.asarray(temperature, jnp.float32), jnp.asarray(bias, jnp.float32)
    count = (x_NxD.shape[0], y_MxD.shape[0])
    if sweep.schedule == "dense":
        score_NxM = scale * product(x_NxD, y_MxD.T) + bias
        return score_loss(
            score_NxM, targets=targets, valid_N=valid_N, valid_M=valid_M, kind=kind, directions=directions
        )
    targets = _as_targets(targets, count)
    weights = _weights(valid_N, valid_M, count)
    totals = [jnp.maximum(jnp.sum(weight), 1e-12) for weight in weights]
    sides = [
        {"targets": side, "valid": weight > 0, "weight": direction * weight / total}
        for side, weight, total, direction in zip(
            (targets.rows, targets.columns), weights, totals, directions, strict=True
        )
    ]
    frozen = lax.stop_gradient((*sides, targets.shared))
    return streamed(Recipe(kind, targets.tile, sweep), x_NxD, y_MxD, scale, bias, *frozen)


def score_loss(
    score_NxM: Float[Array, "N M"],
    *,
    targets: Targets | Float[Array, "N M"] | None = None,
    valid_N: Array | None = None,
    valid_M: Array | None = None,
    kind: str = "softmax",
    directions: tuple[float, float] = (1.0, 1.0),
) -> Float[Array, ""]:
    """The losses of `contrastive` for scores that are there already, e.g. local ones; arguments as there."""
    _check(kind, directions)
    score_NxM = score_NxM.astype(jnp.float32)
    row_NxM, column_NxM, keep_NxM = lax.stop_gradient(_as_targets(targets, score_NxM.shape).whole())
    weight_N, weight_M = _weights(valid_N, valid_M, score_NxM.shape)
    if valid_N is not None or valid_M is not None:
        keep_NxM = keep_NxM & (weight_N > 0)[:, None] & (weight_M > 0)[None, :]
    if kind == "sigmoid":
        row_NxM = jnp.where(keep_NxM, row_NxM, 0.0)
        loss_NxM = jnp.where(keep_NxM, jax.nn.softplus(score_NxM) - row_NxM * score_NxM, 0.0)
        return jnp.sum(weight_N * jnp.sum(loss_NxM, axis=1)) / jnp.maximum(jnp.sum(weight_N), 1e-12)
    loss_N = soft_cross_entropy(score_NxM, row_NxM, keep_NxM)
    loss_M = soft_cross_entropy(score_NxM.T, column_NxM.T, keep_NxM.T)
    return sum(
        direction * jnp.sum(weight * loss) / jnp.maximum(jnp.sum(weight), 1e-12)
        for direction, weight, loss in zip(directions, (weight_N, weight_M), (loss_N, loss_M), strict=True)
    )


def soft_cross_entropy(
    logits_NxM: Float[Array, "N M"],
    targets_NxM: Float[Array, "N M"],
    keep_NxM: Bool[Array, "N M"] | None = None,
) -> Float[Array, " N"]:
    """Cross entropy of every row with non-negative targets that need not sum to one.

    Row loss is `(sum_j T_ij) * logsumexp_j(S_ij) - sum_j T_ij S_ij`.

    Args:
      logits_NxM: rows are queries, columns candidates.
      targets_NxM: non-negative weights.
      keep_NxM: False removes a pair from numerator and softmax.

    Returns: row losses, float32. A row without any candidate gives zero.
    """
    logits_NxM = logits_NxM.astype(jnp.float32)
    targets_NxM = targets_NxM.astype(jnp.float32)
    if keep_NxM is not None:
        targets_NxM = jnp.where(keep_NxM, targets_NxM, 0.0)
        logits_NxM = jnp.where(keep_NxM, logits_NxM, MASKED)
    lse_N = jax.nn.logsumexp(logits_NxM, axis=1)
    return jnp.sum(targets_NxM, axis=1) * lse_N - jnp.sum(targets_NxM * logits_NxM, axis=1)


def _check(kind: str, directions: tuple[float, float]) -> None:
    if kind not in KINDS:
        raise ValueError(f"Unknown kind of pairwise loss {kind!r}. Choose one of {', '.join(KINDS)}.")
    if kind == "sigmoid" and tuple(directions) != (1.0, 1.0):
        raise ValueError(f"directions={directions}: a sigmoid loss counts every pair once and has no directions.")


def _as_targets(targets: Targets | Array | None, shape: tuple[int, int]) -> Targets:
    if targets is None:
        return identity(*shape)
    if isinstance(targets, Targets):
        return targets
    return given(targets, targets.T if shape[0] == shape[1] else targets)


def _weights(valid_N: Array | None, valid_M: Array | None, shape: tuple[int, int]) -> tuple[Array, Array]:
    if valid_M is None and valid_N is not None and shape[0] == shape[1]:
        valid_M = valid_N
    weights = (jnp.ones(count) if v is None else v for v, count in zip((valid_N, valid_M), shape, strict=True))
    return tuple(weight.astype(jnp.float32) for weight in weights)
