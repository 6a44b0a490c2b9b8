"""Pairwise losses over tiles: one sweep for the value, one for the gradients, no matrix of all pairs.

With row sums of targets `T_i = sum_j T_ij` and `LSE_i = logsumexp_j S_ij` a row's softmax loss is
`T_i LSE_i - sum_j T_ij S_ij`: four streamed numbers per row, and as many per column. Its gradient
`dS_ij = a_i (T_i exp(S_ij - LSE_i) - T_ij) + the same of the column` needs only `T_i` and `LSE_i` again, so the second
sweep recomputes every tile and gradients are exact for any schedule.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from medvlp_jax.losses.schedules import Sweep
from medvlp_jax.losses.similarity import product
from medvlp_jax.losses.targets import MASKED, add_scores, log_sum


class Recipe(NamedTuple):
    """What is fixed when a loss is traced: `kind` (softmax or sigmoid), the targets' tile function, the sweep."""

    kind: str
    tile: Callable
    sweep: Sweep


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def streamed(
    recipe: Recipe, x_NxD: Array, y_MxD: Array, scale: Array, bias: Array, rows: dict, columns: dict, shared: dict
) -> Array:
    """Sum over rows and columns of `weight * loss`, float32 scalar; see `contrastive` for the losses.

    Args:
      x_NxD, y_MxD: unit rows, float32 or bfloat16; products are accumulated in float32.
      scale, bias: of `S = scale * x @ y.T + bias`.
      rows, columns: `targets`: what the tile function reads; `weight` (float32): what a row's (column's) loss is
        multiplied with; `valid` (bool): whether it takes part. They and `shared` get no gradient.
    """
    return _forward(recipe, x_NxD, y_MxD, scale, bias, rows, columns, shared)[0]


def _forward(recipe, x_NxD, y_MxD, scale, bias, rows, columns, shared):
    start = [_empty(side["weight"]) for side in (rows, columns)]
    shared = {"targets": shared, "scale": scale, "bias": bias}
    visit = functools.partial(_gather_statistics, recipe.kind, recipe.tile)
    sums = recipe.sweep(visit, {**rows, "z": x_NxD}, {**columns, "z": y_MxD}, shared, *start)
    if recipe.kind == "sigmoid":
        value = jnp.sum(rows["weight"] * sums[0]["cross"])
    else:
        value = sum(
            jnp.sum(side["weight"] * (state["mass"] * log_sum(state) - state["cross"]))
            for side, state in zip((rows, columns), sums, strict=True)
        )
    return value, sums


def _forward_and_save(recipe, x_NxD, y_MxD, scale, bias, rows, columns, shared):
    value, sums = _forward(recipe, x_NxD, y_MxD, scale, bias, rows, columns, shared)
    kept = [{"log_sum": log_sum(state), "mass": state["mass"]} for state in sums]
    return value, (x_NxD, y_MxD, scale, bias, rows, columns, shared, kept)


def _backward(recipe, saved, cotangent):
    x_NxD, y_MxD, scale, bias, rows, columns, shared, kept = saved
    sides = [{**side, **sums, "z": z} for side, sums, z in zip((rows, columns), kept, (x_NxD, y_MxD), strict=True)]
    start = (
        {
            "z": jnp.zeros(x_NxD.shape, jnp.float32),
            "scale": jnp.zeros_like(rows["weight"]),
            "bias": jnp.zeros_like(rows["weight"]),
        },
        jnp.zeros(y_MxD.shape, jnp.float32),
    )
    visit = functools.partial(_gather_gradients, recipe.kind, recipe.tile)
    of_rows, y_gradient_MxD = recipe.sweep(visit, *sides, {"targets": shared, "scale": scale, "bias": bias}, *start)
    return (
        (cotangent * scale * of_rows["z"]).astype(x_NxD.dtype),
        (cotangent * scale * y_gradient_MxD).astype(y_MxD.dtype),
        cotangent * jnp.sum(of_rows["scale"]),
        cotangent * jnp.sum(of_rows["bias"]),
        None,
        None,
        None,
    )


streamed.defvjp(_forward_and_save, _backward)


def _empty(weight_B: Array) -> dict[str, Array]:
    zero_B = jnp.zeros_like(weight_B)
    return {"peak": jnp.full_like(zero_B, MASKED), "total": zero_B, "mass": zero_B, "cross": zero_B}


def _tile(tile: Callable, rows: dict, columns: dict, shared: dict) -> tuple[Array, Array, Array, Array, Array]:
    """Cosines, logits, both targets (zero where a pair is out) and which pairs are in."""
    cosine_nxm = product(rows["z"], columns["z"].T)
    row_nxm, column_nxm, keep_nxm = tile(rows["targets"], columns["targets"], shared["targets"])
    keep_nxm &= (rows["real"] & rows["valid"])[:, None] & (columns["real"] & columns["valid"])[None, :]
    row_nxm, column_nxm = (jnp.where(keep_nxm, target, 0.0) for target in (row_nxm, column_nxm))
    return cosine_nxm, shared["scale"] * cosine_nxm + shared["bias"], row_nxm, column_nxm, keep_nxm


def _gather_statistics(
    kind: str, tile: Callable, rows: dict, columns: dict, shared: dict, of_rows: Any, of_columns: Any
):
    _, logit_nxm, row_nxm, column_nxm, keep_nxm = _tile(tile, rows, columns, shared)
    if kind == "sigmoid":
        loss_nxm = jnp.where(keep_nxm, jax.nn.softplus(logit_nxm) - row_nxm * logit_nxm, 0.0)
        return {**of_rows, "cross": of_rows["cross"] + jnp.sum(loss_nxm, axis=1)}, of_columns
    states = []
    for axis, state, target_nxm in ((1, of_rows, row_nxm), (0, of_columns, column_nxm)):
        summed = {
            "mass": state["mass"] + jnp.sum(target_nxm, axis=axis),
            "cross": state["cross"] + jnp.sum(target_nxm * logit_nxm, axis=axis),
        }
        states.append({**summed, **add_scores(state, logit_nxm, keep_nxm, axis)})
    return tuple(states)


def _gather_gradients(
    kind: str, tile: Callable, rows: dict, columns: dict, shared: dict, of_rows: Any, y_gradient: Any
):
    cosine_nxm, logit_nxm, row_nxm, column_nxm, keep_nxm = _tile(tile, rows, columns, shared)
    if kind == "sigmoid":
        gradient_nxm = rows["weight"][:, None] * (jax.nn.sigmoid(logit_nxm) - row_nxm)
    else:
        row_weight_n, column_weight_m = rows["weight"], columns["weight"]
        row_share = (row_weight_n * rows["mass"])[:, None] * jnp.exp(logit_nxm - rows["log_sum"][:, None])
        column_share = (column_weight_m * columns["mass"])[None, :] * jnp.exp(logit_nxm - columns["log_sum"][None, :])
        targets = row_weight_n[:, None] * row_nxm + column_weight_m[None, :] * column_nxm
        gradient_nxm = row_share + column_share - targets
    gradient_nxm = jnp.where(keep_nxm, gradient_nxm, 0.0)
    factor_nxm = gradient_nxm.astype(rows["z"].dtype)
    added = {
        "z": product(factor_nxm, columns["z"]),
        "scale": jnp.sum(gradient_nxm * cosine_nxm, axis=1),
        "bias": jnp.sum(gradient_nxm, axis=1),
    }
    return jax.tree.map(jnp.add, of_rows, added), y_gradient + product(factor_nxm.T, rows["z"])
