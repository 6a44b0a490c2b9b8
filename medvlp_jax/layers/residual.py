"""The end of a residual block: its normalised branch, the shortcut and the ReLU.

A residual chain is elementwise all along, so XLA's CPU compiler would fuse it into every reader (`layers/apart.py`):
the sixth block of a stage read the convolutions of the five before it once more, for its value and for its gradient,
instead of one output. Here the output is written once, and everything else reads it.
"""

import jax
import jax.numpy as jnp

from medvlp_jax.layers.apart import apart


@jax.custom_vjp
def relu(x: jax.Array) -> jax.Array:
    """max(x, 0). Its gradient asks its value where it is positive, not x, so that x need not be kept."""
    return jnp.maximum(x, 0)


def _relu_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    y = relu(x)
    return y, y


relu.defvjp(_relu_forward, lambda y, gradient: (jnp.where(y > 0, gradient, 0),))


@jax.custom_vjp
def join(x: jax.Array, center: jax.Array, factor: jax.Array, shift: jax.Array, shortcut: jax.Array) -> jax.Array:
    """`relu((x - center) * factor + shift + shortcut)`, float32.

    Args: x, shortcut: of one shape. center, factor, shift: of as many axes, those they are broadcast along of size 1;
      center gets no gradient (batch normalisation carries that of the mean in `shift`).
    """
    return jax.lax.platform_dependent(x, center, factor, shift, shortcut, cpu=apart(_join), default=_join)


def _join(x, center, factor, shift, shortcut):
    return jnp.maximum((x - center) * factor + shift + shortcut, 0)


def _join_forward(x, center, factor, shift, shortcut):
    y = join(x, center, factor, shift, shortcut)
    return y, (x, center, factor, y)


def _join_backward(saved, gradient):
    x, center, factor, y = saved
    gradient = jnp.where(y > 0, gradient, 0)
    axes = tuple(axis for axis, size in enumerate(factor.shape) if size == 1)
    factor_gradient = jnp.sum(gradient * (x - center), axis=axes, keepdims=True)
    shift_gradient = jnp.sum(gradient, axis=axes, keepdims=True)
    return gradient * factor, jnp.zeros_like(center), factor_gradient, shift_gradient, gradient


join.defvjp(_join_forward, _join_backward)
