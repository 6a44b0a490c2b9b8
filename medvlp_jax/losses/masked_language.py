"""Masked language modelling (arXiv 1810.04805, section 3.1, task 1)."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


def masked_language_sums(
    logits_BxPxV: Float[Array, "B P V"], targets_BxP: Int[Array, "B P"], weights_BxP: Float[Array, "B P"]
) -> Float[Array, "3"]:
    """Sums over masked positions: cross entropies (nats), right guesses, positions; float32.

    Args: weights_BxP: 1 where a position was masked, 0 where it is filled up.
    """
    losses = optax.softmax_cross_entropy_with_integer_labels(logits_BxPxV.astype(jnp.float32), targets_BxP)
    right = logits_BxPxV.argmax(-1) == targets_BxP
    return jnp.stack([(losses * weights_BxP).sum(), (right * weights_BxP).sum(), weights_BxP.sum()])
