"""Self-attention and feed-forward blocks that ViT and BERT share."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from medvlp_jax.layers.apart import apart
from medvlp_jax.layers.head_projection import HeadProjection, flat_init
from medvlp_jax.layers.product import dot_general

# Finite, so that a row whose every key is masked gives a uniform distribution and not NaN.
MASKED = -1e9

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {}


def _activation(*names: str):
    def register(function):
        ACTIVATIONS.update(dict.fromkeys(names, function))
        return function

    return register


@_activation("gelu")
def gelu(x: jax.Array) -> jax.Array:
    """Exact GELU, x * Phi(x) through erf (`jax.nn.gelu` takes the slower erfc)."""
    return 0.5 * x * (1.0 + jax.lax.erf(x * (2.0**-0.5)))


@_activation("gelu_new", "gelu_pytorch_tanh")
def gelu_tanh(x: jax.Array) -> jax.Array:
    """GELU in its tanh approximation."""
    return jax.nn.gelu(x, approximate=True)


@_activation("quick_gelu")
def quick_gelu(x: jax.Array) -> jax.Array:
    """x * sigmoid(1.702 x), the activation of CLIP."""
    return x * jax.nn.sigmoid(1.702 * x)


@_activation("relu")
def relu(x: jax.Array) -> jax.Array:
    """max(x, 0)."""
    return jax.nn.relu(x)


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """The activation called `name` in a transformers config.json; raises ValueError naming the known ones."""
    if name not in ACTIVATIONS:
        raise ValueError(f"Activation {name!r} is unknown. Choose one of {', '.join(sorted(ACTIVATIONS))}.")
    return ACTIVATIONS[name]


class LayerNorm(nn.Module):
    """Normalises x [..., E] over its last axis, in float32 with a two-pass variance: params `scale` and `bias` [E].

    Apart on CPU: XLA would make one fusion of the sums and all products around them (`layers/apart.py`).
    """

    epsilon: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)

        def normalize(x, scale, bias):
            x = x.astype(jnp.float32)
            centered = x - jnp.mean(x, axis=-1, keepdims=True)
            var = jnp.mean(jnp.square(centered), axis=-1, keepdims=True)
            return (centered * (jax.lax.rsqrt(var + self.epsilon) * scale) + bias).astype(self.dtype)

        return jax.lax.platform_dependent(x, scale, bias, cpu=apart(normalize), default=normalize)


def linear_around(module: nn.Module, x: jax.Array, part: jax.Array) -> jax.Array:
    """A bound module taken as linear around x [N, E], applied to parts [N, P, E] whose mean is x.

    The mean of the result is `module(x)`: what every part adds to it, to first order.
    """
    around = jnp.broadcast_to(x[:, None], part.shape)
    y, difference = nn.jvp(lambda m, x: m(x), module, (around,), (part - around,), variable_tangents={})
    return y + difference


def key_bias(mask: jax.Array) -> jax.Array:
    """Turns a key mask [B, L] (True or 1 = attend) into an additive float32 bias [B, 1, 1, L]."""
    return jnp.where(mask.astype(bool), 0.0, MASKED).astype(jnp.float32)[:, None, None, :]


class SelfAttention(nn.Module):
    """Multi-head self-attention: params `query`, `key`, `value` [E, H, D] and `out` [H, D, E], each with a bias.

    The three input projections are separate parameters and one matrix product. Softmax is float32.
    """

    heads: int
    dropout: float = 0.0
    qkv_bias: bool = True
    kernel_init: Any = nn.initializers.normal(0.02)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        bias: jax.Array | None = None,
        *,
        train: bool = False,
        parts: bool = False,
        queries: int | None = None,
    ) -> tuple[jax.Array, ...]:
        """Attends within x [B, L, E].

        Args:
            bias: added to the logits, broadcastable to [B, H, L, L]; see `key_bias`.
            train: apply dropout to the attention weights (rng 'dropout').
            parts: also tell what the first position sees in every other one.
            queries: how many of the first positions attend, Q; all without.

        Returns:
            Output [B, Q, E] and attention weights [B, H, Q, L] (before dropout); with `parts` also [B, L - 1, E], with
            the attention as it is: the mean is the first output, what it sees in itself spread evenly.
        """
        width = x.shape[-1]
        if width % self.heads:
            raise ValueError(f"Attention width {width} is not divisible by heads={self.heads}.")
        head_dim = width // self.heads
        projections = [
            HeadProjection(self.heads, head_dim, self.qkv_bias, self.kernel_init, name=name)(width)
            for name in ("query", "key", "value")
        ]

        def project_in(x, projections):
            kernel = jnp.stack([kernel for kernel, _ in projections], axis=1).astype(self.dtype)
            projected = dot_general(x.astype(self.dtype), kernel, (((x.ndim - 1,), (0,)), ((), ())))
            if self.qkv_bias:
                projected = projected + jnp.stack([bias for _, bias in projections]).astype(self.dtype)
            # Heads before positions: products of whole matrices, which XLA's CPU code does in half the time.
            return projected.transpose(2, 0, 3, 1, 4)  # each [B, H, L, D]

        if queries is None:
            query, key, value = project_in(x, projections)
        else:
            (query,), (key, value) = project_in(x[:, :queries], projections[:1]), project_in(x, projections[1:])

        logits = jnp.einsum("bhld,bhmd->bhlm", query * head_dim**-0.5, key)
        logits = logits.astype(jnp.float32)
        if bias is not None:
            logits = logits + bias
        weights = jax.nn.softmax(logits, axis=-1)
        dropped = nn.Dropout(self.dropout, deterministic=not train)(weights)
        mixed = jnp.einsum("bhlm,bhmd->bhld", dropped.astype(self.dtype), value).swapaxes(1, 2)
        project = nn.DenseGeneral(
            width,
            axis=(-2, -1),
            dtype=self.dtype,
            kernel_init=flat_init(self.kernel_init, (width, width)),
            dot_general=dot_general,
            name="out",
        )
        if not parts:
            return project(mixed), weights
        seen = jnp.einsum("bhm,bhmd->bmhd", weights[:, :, 0].astype(self.dtype), value)
        return project(mixed), weights, project((x.shape[1] - 1) * seen[:, 1:] + seen[:, :1])


class FeedForward(nn.Module):
    """Dense, activation, dense: params `up` and `down`."""

    hidden: int
    activation: str = "gelu"
    kernel_init: Any = nn.initializers.normal(0.02)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=self.kernel_init, dot_general=dot_general)
        h = activation(self.activation)(dense(self.hidden, name="up")(x))
        return dense(x.shape[-1], name="down")(h)
