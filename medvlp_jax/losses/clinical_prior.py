"""IMITATE's clinical prior: contrastive targets softened by how alike two reports are."""

import functools
import math
from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from medvlp_jax.losses.schedules import Sweep
from medvlp_jax.losses.similarity import product, unit_rows
from medvlp_jax.losses.targets import Block, Targets, everywhere, normalized, same, without_duplicates

# How correlation R in [0, 1] becomes target mass; `exp` and `sigmoid` rise with correlation, `gau` and `lap` fall.
KERNELS: dict[str, Callable[[Array, float | Array], Array]] = {
    "exp": lambda r, ratio: 1.0 - jnp.exp(-ratio * r),
    "gau": lambda r, ratio: (2.0 * math.pi) ** -0.5 * jnp.exp(-r * r / 2.0),
    "lap": lambda r, ratio: 0.5 * jnp.exp(-jnp.abs(r)),
    "sigmoid": lambda r, ratio: 1.0 / (1.0 + jnp.exp(-r)),
}
MASSES = ("released", "batch_invariant", "row")


def clinical_prior(
    report_BxE: Float[Array, "B E"],
    *,
    kernel: str = "exp",
    ratio: float = 0.2,
    valid_B: Bool[Array, " B"] | None = None,
    centre: bool = False,
) -> Float[Array, "B B"]:
    """Similarity of reports that contrastive targets are softened by, whole: what `prior_targets` makes by tiles.

    Negative correlations and the diagonal are set to zero before the kernel, so `exp` keeps a zero diagonal while
    `gau`, `lap` and `sigmoid` put mass on the diagonal and on unrelated pairs, as in the released code.

    Args:
      report_BxE: frozen text embeddings, any scale, float.
      kernel: one of `exp`, `gau`, `lap`, `sigmoid`.
      ratio: slope of the `exp` kernel; the others ignore it.
      valid_B: rows with a text; pairs with a missing one have correlation zero.
      centre: subtract the mean of the valid rows first. Sentence encoders place all texts in a narrow cone, where every
        pair correlates; what is left after centring tells reports apart.

    Returns: B×B float32, symmetric, without gradient; for `exp` in [0, 1 - exp(-ratio)].
    Raises: ValueError for an unknown kernel.
    Source: cheliu-computation/IMITATE-TMI2024@cd1c575, the clinical-prior kernels.
    """
    side = _side(report_BxE, valid_B, centre)
    return _prior(side, side, {"ratio": ratio}, _checked(kernel))


def prior_targets(
    report_BxE: Float[Array, "B E"],
    *,
    temperature: float,
    kernel: str = "exp",
    ratio: float = 0.2,
    mass: str = "released",
    reference_batch: int = 128,
    centre: bool = False,
    valid_B: Bool[Array, " B"] | None = None,
    hash_B: Array | None = None,
    dtype: jnp.dtype = jnp.float32,
    sweep: Sweep | None = None,
) -> Targets:
    """Contrastive targets `Y = I + scale * temperature * prior`.

    The released targets are not normalised, so their off-diagonal mass grows with the batch and a naive global batch
    is another objective. `batch_invariant` scales by `(reference_batch - 1) / (M - 1)`, `M` the number of valid
    examples: the mean row mass of the released recipe at any batch size, and equal to it at `M = reference_batch`.

    Args:
      report_BxE, kernel, ratio, valid_B, centre: as in `clinical_prior`.
      temperature: the temperature of the loss that these targets soften.
      mass: `released` (scale 1), `batch_invariant`, or `row` (every row of Y divided by its sum).
      reference_batch: the batch whose row mass is kept.
      hash_B: different examples with equal hashes (identical reports) take no part as pairs.
      dtype: of the unit vectors whose products are correlations; products are accumulated in float32.
      sweep: how row sums are taken.

    Raises: ValueError for an unknown mass rule or kernel.
    """
    if mass not in MASSES:
        raise ValueError(f"Unknown prior mass rule {mass!r}. Choose one of {', '.join(MASSES)}.")
    scale = jnp.asarray(temperature, jnp.float32)
    if mass == "batch_invariant":
        batch = report_BxE.shape[0] if valid_B is None else jnp.sum(valid_B.astype(jnp.float32))
        scale = scale * ((reference_batch - 1) / jnp.maximum(batch - 1.0, 1.0))
    side = _side(report_BxE, valid_B, centre)
    side["unit"] = side["unit"].astype(dtype)
    shared = {"ratio": jnp.asarray(ratio, jnp.float32), "scale": scale}
    targets = Targets(side, side, shared, functools.partial(_softened, _checked(kernel)))
    if hash_B is not None:
        targets = without_duplicates(targets, hash_B)
    if mass == "row":
        targets = normalized(targets, valid_N=valid_B, valid_M=valid_B, sweep=sweep)
    return targets


def pearson(report_BxE: Float[Array, "B E"]) -> Float[Array, "B B"]:
    """Pearson correlation between the rows of `report_BxE`, float32 in [-1, 1]; a constant row correlates with none."""
    unit_BxE = centred_units(report_BxE)
    return product(unit_BxE, unit_BxE.T)


def centred_units(report_BxE: Float[Array, "B E"]) -> Float[Array, "B E"]:
    """Rows minus their own mean, of length one: products of them are Pearson correlations."""
    report_BxE = report_BxE.astype(jnp.float32)
    centred_BxE = report_BxE - jnp.mean(report_BxE, axis=1, keepdims=True)
    # A constant row leaves rounding dust after centring; normalising dust would invent correlations.
    scale_Bx1 = jnp.max(jnp.abs(report_BxE), axis=1, keepdims=True)
    return unit_rows(jnp.where(jnp.abs(centred_BxE) <= 1e-6 * scale_Bx1, 0.0, centred_BxE))


def _checked(kernel: str) -> str:
    if kernel not in KERNELS:
        raise ValueError(f"Unknown clinical-prior kernel {kernel!r}. Choose one of {', '.join(KERNELS)}.")
    return kernel


def _side(report_BxE: Array, valid_B: Array | None, centre: bool) -> dict[str, Array]:
    """What a tile must know of an example: its number, its unit vector, and whether it has a text."""
    count = report_BxE.shape[0]
    valid_B = jnp.ones(count, bool) if valid_B is None else valid_B
    report_BxE = report_BxE.astype(jnp.float32)
    if centre:
        weight_Bx1 = valid_B[:, None].astype(jnp.float32)
        report_BxE = report_BxE - jnp.sum(weight_Bx1 * report_BxE, axis=0) / jnp.maximum(jnp.sum(weight_Bx1), 1.0)
    unit_BxE = lax.stop_gradient(centred_units(report_BxE))
    return {"index": jnp.arange(count, dtype=jnp.int32), "unit": unit_BxE, "has_text": valid_B}


def _prior(rows: dict, columns: dict, shared: dict, kernel: str) -> Array:
    correlated_nxm = rows["has_text"][:, None] & columns["has_text"][None, :] & ~same(rows, columns, "index")
    correlation_nxm = jnp.maximum(product(rows["unit"], columns["unit"].T), 0.0)
    return KERNELS[kernel](jnp.where(correlated_nxm, correlation_nxm, 0.0), shared["ratio"])


def _softened(kernel: str, rows: dict, columns: dict, shared: dict) -> Block:
    return everywhere(same(rows, columns, "index") + shared["scale"] * _prior(rows, columns, shared, kernel))
