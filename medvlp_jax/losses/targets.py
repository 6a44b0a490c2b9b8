"""Targets that soften a contrastive loss: IMITATE's clinical prior and its batch-invariant form."""

import math
from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from medvlp_jax.losses.contrastive import unit_rows

# How correlation R in [0, 1] becomes target mass; `exp` and `sigmoid` rise with correlation, `gau` and `lap` fall.
KERNELS: dict[str, Callable[[Array, float], Array]] = {
    "exp": lambda r, ratio: 1.0 - jnp.exp(-ratio * r),
    "gau": lambda r, ratio: (2.0 * math.pi) ** -0.5 * jnp.exp(-r * r / 2.0),
    "lap": lambda r, ratio: 0.5 * jnp.exp(-jnp.abs(r)),
    "sigmoid": lambda r, ratio: 1.0 / (1.0 + jnp.exp(-r)),
}
MASSES = ("released", "batch_invariant", "row")


def pearson(report_BxE: Float[Array, "B E"]) -> Float[Array, "B B"]:
    """Pearson correlation between the rows of `report_BxE`, float32 in [-1, 1]; a constant row correlates with none."""
    report_BxE = report_BxE.astype(jnp.float32)
    centred_BxE = report_BxE - jnp.mean(report_BxE, axis=1, keepdims=True)
    # A constant row leaves rounding dust after centring; normalising dust would invent correlations.
    scale_Bx1 = jnp.max(jnp.abs(report_BxE), axis=1, keepdims=True)
    centred_BxE = jnp.where(jnp.abs(centred_BxE) <= 1e-6 * scale_Bx1, 0.0, centred_BxE)
    unit_BxE = unit_rows(centred_BxE)
    return jnp.matmul(unit_BxE, unit_BxE.T, precision=lax.Precision.HIGHEST)


def clinical_prior(
    report_BxE: Float[Array, "B E"],
    *,
    kernel: str = "exp",
    ratio: float = 0.2,
    valid_B: Bool[Array, " B"] | None = None,
    centre: bool = False,
) -> Float[Array, "B B"]:
    """Similarity of reports that contrastive targets are softened by.

    Negative correlations and the diagonal are set to zero before the kernel, so `exp` keeps a zero diagonal while
    `gau`, `lap` and `sigmoid` put mass on the diagonal and on unrelated pairs, as in the released code.

    Args:
      report_BxE: frozen text embeddings, any scale, float.
      kernel: one of `exp`, `gau`, `lap`, `sigmoid`.
      ratio: slope of the `exp` kernel; the others ignore it.
      valid_B: rows with a text; pairs with a missing one have correlation zero.
      centre: subtract the mean of the valid rows first. Sentence encoders place all texts in a narrow cone, where every
        pair correlates; what is left after centring tells reports apart.

    Returns: B×B float32, symmetric; for `exp` in [0, 1 - exp(-ratio)].
    Raises: ValueError for an unknown kernel.
    Source: cheliu-computation/IMITATE-TMI2024@cd1c575, the clinical-prior kernels.
    """
    if kernel not in KERNELS:
        raise ValueError(f"Unknown clinical-prior kernel {kernel!r}. Choose one of {', '.join(KERNELS)}.")
    if centre:
        weight_Bx1 = jnp.ones((report_BxE.shape[0], 1)) if valid_B is None else valid_B[:, None].astype(jnp.float32)
        report_BxE = report_BxE.astype(jnp.float32)
        total_E = jnp.sum(weight_Bx1 * report_BxE, axis=0)
        report_BxE = report_BxE - total_E / jnp.maximum(jnp.sum(weight_Bx1), 1.0)
    correlation_BxB = jnp.maximum(pearson(report_BxE), 0.0)
    correlation_BxB = jnp.where(jnp.eye(report_BxE.shape[0], dtype=bool), 0.0, correlation_BxB)
    if valid_B is not None:
        correlation_BxB = jnp.where(valid_B[:, None] & valid_B[None, :], correlation_BxB, 0.0)
    return lax.stop_gradient(KERNELS[kernel](correlation_BxB, ratio))


def prior_targets(
    prior_BxB: Float[Array, "B B"],
    *,
    temperature: float,
    mass: str = "released",
    reference_batch: int = 128,
    pair_mask_BxB: Bool[Array, "B B"] | None = None,
    valid_B: Bool[Array, " B"] | None = None,
) -> Float[Array, "B B"]:
    """Contrastive targets `Y = I + scale * temperature * prior`.

    The released targets are not normalised, so their off-diagonal mass grows with the batch and a naive global batch
    is another objective. `batch_invariant` scales by `(reference_batch - 1) / (M - 1)`, `M` the number of valid
    examples: the mean row mass of the released recipe at any batch size, and equal to it at `M = reference_batch`.

    Args:
      prior_BxB: from `clinical_prior`.
      temperature: the temperature of the loss that these targets soften.
      mass: `released` (scale 1), `batch_invariant`, or `row` (every row of Y divided by its sum).
      reference_batch: the batch whose row mass is kept.
      pair_mask_BxB: pairs that take part in the loss; others get zero mass.
      valid_B: examples that count towards `M`; all when omitted.

    Returns: B×B float32, for `contrastive(targets_BxB=...)`.
    Raises: ValueError for an unknown mass rule.
    """
    if mass not in MASSES:
        raise ValueError(f"Unknown prior mass rule {mass!r}. Choose one of {', '.join(MASSES)}.")
    soft_BxB = temperature * prior_BxB.astype(jnp.float32)
    if mass == "batch_invariant":
        batch = prior_BxB.shape[0] if valid_B is None else jnp.sum(valid_B.astype(jnp.float32))
        soft_BxB = soft_BxB * ((reference_batch - 1) / jnp.maximum(batch - 1.0, 1.0))
    targets_BxB = jnp.eye(prior_BxB.shape[0]) + soft_BxB
    if pair_mask_BxB is not None:
        targets_BxB = jnp.where(pair_mask_BxB, targets_BxB, 0.0)
    if mass == "row":
        targets_BxB = targets_BxB / jnp.maximum(jnp.sum(targets_BxB, axis=1, keepdims=True), 1e-12)
    return targets_BxB
