"""Batch normalisation whose statistics scope is stated, never an accident of how the batch is sharded."""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from medvlp_jax.layers.product_norm import product_norm
from medvlp_jax.layers.residual import join, relu

StatsScope = Literal["global", "group", "frozen"]
SCOPES: tuple[str, ...] = ("global", "group", "frozen")


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last, with the running statistics of torch.

    Inputs hold ``N = B * views`` rows, example-major: example 0 view 0, example 0 view 1, ..., example 1 view 0, ...

    ``stats_scope`` (used with ``train=True``):
        ``global``  statistics over all N rows. Under a global-view ``jit`` these are the rows of *all* devices.
        ``group``   statistics of each run of ``group_size`` consecutive examples, separately for each view: what one
                    process of a data-parallel run sees when it holds ``group_size`` examples and passes the views one
                    by one. Running averages take the mean over groups and fold the views in one after another.
        ``frozen``  running statistics, never updated; scale and bias stay trainable.
    With ``train=False`` every one normalises with the running statistics.

    Statistics are float32. Those of float32 inputs take two passes over them, the mean first. Those of bfloat16 inputs,
    whose values have eight bits, take one, around the running mean: large maps are read once less, and several devices
    add up sums once instead of twice. The running variance is unbiased (n - 1), the one
    used to normalise is biased, as in torch. ``momentum`` is the share *kept* (torch ``momentum=0.1`` is 0.9 here).

    Variables: ``params/{scale,bias}`` (C,), ``batch_stats/{mean,var}`` (C,), all float32.
    """

    use_scale: bool = True
    use_bias: bool = True
    momentum: float = 0.9
    epsilon: float = 1e-5
    stats_scope: StatsScope = "global"
    group_size: int = 0
    views: int = 1
    dtype: Any = None
    scale_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        train: bool,
        valid_N: jax.Array | None = None,
        kernel: jax.Array | None = None,
        shortcut: jax.Array | None = None,
    ) -> jax.Array:
        """Normalises x [N, ..., C]; returns the same shape in ``dtype`` (default: the dtype of x).

        ``valid_N`` (bool) keeps rows out of the statistics, e.g. reports without the section; they are normalised all
        the same. It may have more of the leading axes of x, e.g. [N, L] for padding in sequences. Every group needs at
        least two valid values, or its running update is that of zero variance.

        ``kernel`` [1, 1, C, O]: normalises the 1x1 convolution of x with it, which is never kept (``product_norm``);
        for training with ``global`` statistics, scale and bias.

        ``shortcut``, of the shape and dtype of the result: ends a residual block, `relu(normalised + shortcut)`.

        Raises:
            ValueError: unknown scope, rows that do not split into views or groups, or fewer than two values per
                channel to take statistics from.
        """
        if self.stats_scope not in SCOPES:
            raise ValueError(
                f"BatchNorm stats_scope={self.stats_scope!r} is unknown. Choose one of {', '.join(SCOPES)}."
            )
        channels = x.shape[-1] if kernel is None else kernel.shape[-1]
        scale = self.param("scale", self.scale_init, (channels,), jnp.float32) if self.use_scale else None
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32) if self.use_bias else None
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        dtype = self.dtype or x.dtype

        if not train or self.stats_scope == "frozen":
            statistics = running_mean.value, running_var.value
            return _normalize(x, *statistics, scale, bias, self.epsilon, shortcut, dtype)

        if kernel is not None:
            count = math.prod(x.shape[:-1])
            y, mean, var = product_norm(x, kernel, scale, bias, self.epsilon)
            y = _with_shortcut(y.astype(dtype), shortcut)
        else:
            y, mean, var, count = self._over_rows(x, running_mean.value, scale, bias, valid_N, shortcut, dtype)

        if not self.is_initializing():
            if isinstance(count, int) and count < 2:
                raise ValueError(
                    f"BatchNorm in training needs at least 2 values per channel, got {count} from input {x.shape} "
                    f"with stats_scope={self.stats_scope!r}. Use a larger batch or group_size, or stats_scope='frozen'."
                )
            views = self.views if self.stats_scope == "group" else 1
            means_VxC = jnp.mean(mean.reshape(-1, views, channels), axis=0)
            unbiased = var * (count / jnp.maximum(count - 1, 1))
            vars_VxC = jnp.mean(unbiased.reshape(-1, views, channels), axis=0)
            for view in range(views):
                running_mean.value = self.momentum * running_mean.value + (1 - self.momentum) * means_VxC[view]
                running_var.value = self.momentum * running_var.value + (1 - self.momentum) * vars_VxC[view]
        return y

    @nn.nowrap
    def _over_rows(self, x, near, scale, bias, valid_N, shortcut, dtype):
        """The normalised x, and its statistics with the number of values behind them; `near`: about the mean."""
        # init may see a batch of any size: it needs shapes, not groups, and leaves the running statistics alone.
        if self.is_initializing() or self.stats_scope == "global":
            rows = x
            axes = tuple(range(x.ndim - 1))
        else:
            rows = _split_groups(x, self.group_size, self.views)
            axes = (1, *range(3, x.ndim + 1))
        if valid_N is not None:
            groups = rows.shape[: rows.ndim - x.ndim + 1]
            valid_N = valid_N.reshape(*groups, *valid_N.shape[1:], *[1] * (x.ndim - valid_N.ndim))
        mean, var, count = _moments(rows, axes, valid_N, near)
        shortcut = None if shortcut is None else shortcut.reshape(rows.shape)
        y = _normalize(rows, mean, var, scale, bias, self.epsilon, shortcut, dtype)
        return y.reshape(x.shape), mean, var, count


def _split_groups(x: jax.Array, group_size: int, views: int) -> jax.Array:
    """[B * views, ..., C] -> [B / group_size, group_size, views, ..., C]."""
    if group_size < 1 or views < 1:
        raise ValueError(
            f"BatchNorm stats_scope='group' needs group_size >= 1 and views >= 1, "
            f"got group_size={group_size}, views={views}."
        )
    if x.shape[0] % views:
        raise ValueError(f"BatchNorm got {x.shape[0]} rows, which are not a multiple of views={views}.")
    examples = x.shape[0] // views
    if examples % group_size:
        raise ValueError(
            f"BatchNorm group_size={group_size} does not divide the batch of {examples} examples. "
            f"Use a batch size that is a multiple of {group_size}, another group_size, or stats_scope='global'."
        )
    return x.reshape(examples // group_size, group_size, views, *x.shape[1:])


def _moments(
    x: jax.Array, axes: tuple[int, ...], valid: jax.Array | None, near: jax.Array
) -> tuple[jax.Array, jax.Array, int | jax.Array]:
    """Mean and biased variance (float32, axes kept) and the number of values behind each. `near`: about the mean."""
    if x.dtype == jnp.bfloat16 and valid is None:
        centered = x.astype(jnp.float32) - jax.lax.stop_gradient(near)
        offset = jnp.mean(centered, axis=axes, keepdims=True)
        square = jnp.mean(jnp.square(centered), axis=axes, keepdims=True)
        var = jnp.maximum(square - jnp.square(offset), 0.0)
        return offset + jax.lax.stop_gradient(near), var, math.prod(x.shape[a] for a in axes)
    x = x.astype(jnp.float32)
    # The variance does not change with the point it is taken around to first order, so that point needs no gradient.
    if valid is None:
        mean = jnp.mean(x, axis=axes, keepdims=True)
        centered = x - jax.lax.stop_gradient(mean)
        return mean, jnp.mean(jnp.square(centered), axis=axes, keepdims=True), math.prod(x.shape[a] for a in axes)
    weight = jnp.broadcast_to(valid, (*x.shape[:-1], 1)).astype(jnp.float32)
    count = jnp.sum(weight, axis=axes, keepdims=True)
    mean = jnp.sum(weight * x, axis=axes, keepdims=True) / jnp.maximum(count, 1)
    centered = x - jax.lax.stop_gradient(mean)
    return mean, jnp.sum(weight * jnp.square(centered), axis=axes, keepdims=True) / jnp.maximum(count, 1), count


def _normalize(x, mean, var, scale, bias, epsilon: float, shortcut, dtype) -> jax.Array:
    """The normalised x in `dtype`; with a shortcut the end of a residual block. mean, var: [..., C]."""
    mean, var = (a.reshape((1,) * (x.ndim - a.ndim) + a.shape) for a in (mean, var))
    factor = jax.lax.rsqrt(var + epsilon)
    if scale is not None:
        factor = factor * scale
    # Equal to (x - mean) * factor + bias. `mean - center` is zero and carries the gradient of the mean per channel,
    # which spares the backward pass one reduction over x.
    center = jax.lax.stop_gradient(mean)
    shift = (center - mean) * factor
    if bias is not None:
        shift = shift + bias
    if shortcut is not None and x.dtype == dtype == jnp.float32:
        return join(x, center, factor, shift, shortcut)
    return _with_shortcut(((x.astype(jnp.float32) - center) * factor + shift).astype(dtype), shortcut)


def _with_shortcut(y: jax.Array, shortcut: jax.Array | None) -> jax.Array:
    return y if shortcut is None else relu(y + shortcut)
