"""M-FLAG's two terms: an image latent with orthonormal dimensions, and alignment of pairs without negatives."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from medvlp_jax.losses.similarity import product, unit_rows

OFF_DIAGONAL = 0.0051


def orthogonality_loss(
    z_BxD: Float[Array, "B D"],
    *,
    off_diagonal: float = OFF_DIAGONAL,
    centre: bool = False,
    valid_B: Bool[Array, " B"] | None = None,
) -> Float[Array, ""]:
    """How far the dimensions of a latent are from orthonormal over the batch.

    With `C = z^T z / B` it is `(sum_i (C_ii - 1)^2 + off_diagonal * sum_{i != j} C_ij^2) / 2`, sums over the D latent
    dimensions. The rank of C is at most B, so for B < D the loss has a floor that falls with the batch (15.4 at D =
    2,048 and B = 512): a global batch is another objective than groups of it.

    Args:
      z_BxD: image latent before any projection, neither centred nor normalised. Float32 or bfloat16; the products are
        accumulated in float32, so several devices exchange one D×D matrix.
      off_diagonal: weight of the squares beside the diagonal.
      centre: subtract the mean of the batch first (the released code does not).
      valid_B: examples that count; B is their number.

    Returns: float32 scalar; D/2 when no example is valid.
    Source: arXiv 2307.08347; cheliu-computation/M-FLAG-MICCAI2023@a7fea3c, the orthogonal loss.
    """
    valid_B = jnp.ones(z_BxD.shape[0], bool) if valid_B is None else valid_B
    count = jnp.maximum(jnp.sum(valid_B), 1)
    z_BxD = jnp.where(valid_B[:, None], z_BxD, 0)
    if centre:
        mean_D = jnp.sum(z_BxD.astype(jnp.float32), axis=0) / count
        z_BxD = jnp.where(valid_B[:, None], z_BxD.astype(jnp.float32) - mean_D, 0.0)
    c_DxD = product(z_BxD.T, z_BxD) / count
    diagonal_D = jnp.diagonal(c_DxD)
    beside_DxD = jnp.where(jnp.eye(c_DxD.shape[0], dtype=bool), 0.0, c_DxD)
    return 0.5 * (jnp.sum((diagonal_D - 1.0) ** 2) + off_diagonal * jnp.sum(beside_DxD**2))


def cosine_alignment(
    x_BxD: Float[Array, "B D"], y_BxD: Float[Array, "B D"], *, valid_B: Bool[Array, " B"] | None = None
) -> Float[Array, ""]:
    """Mean of `4 - 4 cos(x_i, y_i)`: 0 for parallel, 4 for orthogonal, 8 for opposite pairs; there are no negatives.

    Args: x_BxD, y_BxD: projected image and text, any scale. valid_B: pairs that count.
    Returns: float32 scalar, zero when no pair is valid.
    Source: cheliu-computation/M-FLAG-MICCAI2023@a7fea3c, where `2 - 2 cos` is added twice.
    """
    loss_B = 4.0 - 4.0 * jnp.sum(unit_rows(x_BxD) * unit_rows(y_BxD), axis=1)
    weight_B = jnp.ones_like(loss_B) if valid_B is None else valid_B.astype(jnp.float32)
    return jnp.sum(weight_B * loss_B) / jnp.maximum(jnp.sum(weight_B), 1.0)
