"""MGCA's prototype term: the codes of one modality, balanced over the batch, are what the other learns to predict.

Prototypes are directions: `prototype_loss` normalises them. The released code does so in place before every step; to
have the same lengths in the optimizer, write `unit_rows` of the parameter back after every update.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from medvlp_jax.losses.contrastive import soft_cross_entropy
from medvlp_jax.losses.similarity import product, unit_rows
from medvlp_jax.losses.targets import MASKED


def prototype_loss(
    image_BxD: Float[Array, "B D"],
    text_BxD: Float[Array, "B D"],
    prototype_KxD: Float[Array, "K D"],
    *,
    temperature: float = 0.2,
    epsilon: float = 0.05,
    iterations: int = 3,
    straight_through: bool = False,
    valid_B: Bool[Array, " B"] | None = None,
) -> Float[Array, ""]:
    """Swapped prediction: half the cross entropies of texts with the codes of images and of images with those of texts.

    Args:
      image_BxD, text_BxD: global embeddings, any scale. prototype_KxD: prototypes, any scale, 500 in MGCA. All are
        normalised here, in float32.
      straight_through: no gradient through the normalisation of prototypes, as released: the gradient of unit
        prototypes is that of the parameter, its part along them included.
      temperature: of the predictions. epsilon, iterations: of the codes, see `sinkhorn`. Codes get no gradient.
      valid_B: pairs that take part; the others have no share in the balance either.

    Returns: float32 scalar, zero when no pair is valid.
    Source: HKU-MedAI/MGCA@680fe4a, the prototype loss (with the minus sign that the paper's equation lacks).
    """
    unit_KxD = unit_rows(prototype_KxD)
    if straight_through:
        unit_KxD = prototype_KxD + lax.stop_gradient(unit_KxD - prototype_KxD)
    image_BxK, text_BxK = (product(unit_rows(x_BxD), unit_KxD.T) for x_BxD in (image_BxD, text_BxD))
    valid_B = jnp.ones(image_BxK.shape[0], bool) if valid_B is None else valid_B
    code = {"epsilon": epsilon, "iterations": iterations, "valid_B": valid_B}
    loss_B = soft_cross_entropy(text_BxK / temperature, sinkhorn(image_BxK, **code))
    loss_B += soft_cross_entropy(image_BxK / temperature, sinkhorn(text_BxK, **code))
    return 0.5 * jnp.sum(jnp.where(valid_B, loss_B, 0.0)) / jnp.maximum(jnp.sum(valid_B), 1)


def sinkhorn(
    score_BxK: Float[Array, "B K"],
    *,
    epsilon: float = 0.05,
    iterations: int = 3,
    valid_B: Bool[Array, " B"] | None = None,
) -> Float[Array, "B K"]:
    """Assignments of examples to prototypes that use every prototype about equally often (Sinkhorn-Knopp).

    `exp(score / epsilon)` is scaled to equal sums over the batch for every prototype, then to sum one for every
    example, `iterations` times. It is done with logarithms, so that cosines over a small epsilon (e^20) lose nothing.
    Under a sharded batch every iteration exchanges K numbers.

    Args:
      score_BxK: cosines of examples with prototypes.
      valid_B: examples that take part; rows of the others are zero.

    Returns: float32, rows sum to one, columns to about B/K; without gradient.
    Source: HKU-MedAI/MGCA@680fe4a, `sinkhorn`, in the linear domain there.
    """
    keep_Bx1 = jnp.ones((score_BxK.shape[0], 1), bool) if valid_B is None else valid_B[:, None]
    log_BxK = lax.stop_gradient(score_BxK.astype(jnp.float32)) / epsilon
    for _ in range(iterations):
        log_BxK -= jax.nn.logsumexp(jnp.where(keep_Bx1, log_BxK, MASKED), axis=0, keepdims=True)
        log_BxK -= jax.nn.logsumexp(log_BxK, axis=1, keepdims=True)
    return jnp.where(keep_Bx1, jax.nn.softmax(log_BxK, axis=1), 0.0)


def frozen_before(
    prototype_KxD: Float[Array, "K D"], step: int | Int[Array, ""], first_step: int
) -> Float[Array, "K D"]:
    """Prototypes that get no gradient before `first_step` (MGCA: the first step of the second epoch).

    A gradient of zero leaves an Adam moment at zero and the parameter in place; weight decay only scales all of it,
    which normalisation takes back. One difference from a parameter that the optimizer skips remains: the count of
    Adam's bias correction has run on, so the first updates afterwards are up to three times as large.

    Source: HKU-MedAI/MGCA@680fe4a, `freeze_prototypes_epochs`.
    """
    return jnp.where(step < first_step, lax.stop_gradient(prototype_KxD), prototype_KxD)
