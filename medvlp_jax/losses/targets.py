"""What a pairwise loss is trained towards, as a function of two blocks of examples.

A B×B matrix of soft targets is never needed whole: `Targets` holds what is known of each example, and a function that
gives the targets of a block of rows with a block of columns; every schedule makes the tile that it needs. No gradient
flows into targets.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from medvlp_jax.losses.schedules import Sweep
from medvlp_jax.losses.similarity import product

# Finite on purpose: -inf times a zero target is NaN.
MASKED = -1e30


class Block(NamedTuple):
    """Targets of n rows with m columns.

    row, column: float32 n×m, weight of a pair in the loss of its row and in that of its column.
    keep: bool n×m, False takes a pair out of both.
    """

    row: Array
    column: Array
    keep: Array


@struct.dataclass
class Targets:
    """Targets as a function of blocks.

    rows, columns: arrays with one entry per example on the leading axis; `index` numbers the examples.
    shared: arrays that all examples share. tile: `(rows, columns, shared) -> Block`, a pure function.
    """

    rows: dict[str, Array]
    columns: dict[str, Array]
    shared: dict[str, Array]
    tile: Callable[[dict, dict, dict], Block] = struct.field(pytree_node=False)

    def whole(self) -> Block:
        """All targets at once, N×M."""
        return self.tile(self.rows, self.columns, self.shared)


def identity(count_N: int, count_M: int | None = None) -> Targets:
    """Row i belongs to column i and to no other: CLIP, ConVIRT."""
    return Targets(_numbered(count_N), _numbered(count_M or count_N), {}, _identity)


def same_id(id_N: Int[Array, " N"], id_M: Int[Array, " M"] | None = None) -> Targets:
    """1 for every pair with equal ids: several positives per row (images of one study, identical reports)."""
    id_M = id_N if id_M is None else id_M
    return Targets(_numbered(id_N.shape[0], id=id_N), _numbered(id_M.shape[0], id=id_M), {}, _same_id)


def given(row_NxM: Float[Array, "N M"], column_NxM: Float[Array, "N M"] | None = None) -> Targets:
    """A matrix that is there already; `column_NxM` where columns have targets of their own. Holds all of it."""
    count_N, count_M = row_NxM.shape
    column_NxM = row_NxM if column_NxM is None else column_NxM
    return Targets(_numbered(count_N, row=row_NxM, column=column_NxM), _numbered(count_M), {}, _given)


def softmax_of(
    x_NxK: Float[Array, "N K"], y_MxK: Float[Array, "M K"], *, scale: float | Array = 1.0, sweep: Sweep | None = None
) -> Targets:
    """Softmax of `scale * x @ y.T`: over columns for the rows, over rows for the columns.

    With label vectors these are MedCLIP's targets (arXiv 2210.10163), with embeddings of another model those of
    distillation. Normalisers are streamed by `sweep`, one number per example.
    """
    rows, columns = _numbered(x_NxK.shape[0], x=x_NxK), _numbered(y_MxK.shape[0], y=y_MxK)
    shared = {"scale": jnp.asarray(scale, jnp.float32)}
    start = [{"peak": jnp.full(n, MASKED), "total": jnp.zeros(n)} for n in (x_NxK.shape[0], y_MxK.shape[0])]
    sums_N, sums_M = (sweep or Sweep())(_stream_log_sums, rows, columns, shared, *start)
    rows, columns = {**rows, "log_sum": log_sum(sums_N)}, {**columns, "log_sum": log_sum(sums_M)}
    return Targets(rows, columns, shared, _softmax)


def label_overlap(x_NxK: Float[Array, "N K"], y_MxK: Float[Array, "M K"], *, sweep: Sweep | None = None) -> Targets:
    """`clip(x @ y.T + I, 0, 1)`, every row divided by its sum (columns by theirs): UniCL (arXiv 2204.03610)."""
    rows, columns = _numbered(x_NxK.shape[0], x=x_NxK), _numbered(y_MxK.shape[0], y=y_MxK)
    return normalized(Targets(rows, columns, {}, _overlap), sweep=sweep)


def without_duplicates(targets: Targets, hash_N: Int[Array, " N"], hash_M: Int[Array, " M"] | None = None) -> Targets:
    """Takes pairs of different examples with equal hashes (the same text, say) out of both directions."""
    rows = {**targets.rows, "hash": hash_N}
    columns = {**targets.columns, "hash": hash_N if hash_M is None else hash_M}
    return targets.replace(rows=rows, columns=columns, tile=functools.partial(_without_duplicates, targets.tile))


def normalized(
    targets: Targets,
    *,
    valid_N: Array | None = None,
    valid_M: Array | None = None,
    sweep: Sweep | None = None,
) -> Targets:
    """Every row of targets divided by its sum over the valid pairs that are kept, and every column by its own."""
    count_N, count_M = (side["index"].shape[0] for side in (targets.rows, targets.columns))
    rows = {"targets": targets.rows, "valid": jnp.ones(count_N, bool) if valid_N is None else valid_N}
    columns = {"targets": targets.columns, "valid": jnp.ones(count_M, bool) if valid_M is None else valid_M}
    visit = functools.partial(_stream_mass, targets.tile)
    mass_N, mass_M = (sweep or Sweep())(visit, rows, columns, targets.shared, jnp.zeros(count_N), jnp.zeros(count_M))
    return targets.replace(
        rows={**targets.rows, "mass": jnp.maximum(mass_N, 1e-12)},
        columns={**targets.columns, "mass": jnp.maximum(mass_M, 1e-12)},
        tile=functools.partial(_normalized, targets.tile),
    )


def same(rows: dict, columns: dict, name: str) -> Bool[Array, "n m"]:
    """True where a row and a column agree in `name`."""
    return rows[name][:, None] == columns[name][None, :]


def everywhere(target_nxm: Array) -> Block:
    """One target for both directions, no pair taken out."""
    target_nxm = target_nxm.astype(jnp.float32)
    return Block(target_nxm, target_nxm, jnp.ones(target_nxm.shape, bool))


def log_sum(state: dict[str, Array]) -> Array:
    """Log-sum-exp from a streamed `peak` and `total`; finite where nothing was summed."""
    return state["peak"] + jnp.log(jnp.maximum(state["total"], 1e-37))


def add_scores(state: dict[str, Array], score_nxm: Array, keep_nxm: Array, axis: int) -> dict[str, Array]:
    """Takes a tile of scores into the streamed `peak` and `total` of its rows (axis 1) or columns (axis 0)."""
    score_nxm = jnp.where(keep_nxm, score_nxm, MASKED)
    peak = jnp.maximum(state["peak"], jnp.max(score_nxm, axis=axis))
    weight_nxm = jnp.where(keep_nxm, jnp.exp(score_nxm - jnp.expand_dims(peak, axis)), 0.0)
    return {"peak": peak, "total": state["total"] * jnp.exp(state["peak"] - peak) + jnp.sum(weight_nxm, axis=axis)}


def _numbered(count: int, **arrays: Array) -> dict[str, Array]:
    return {"index": jnp.arange(count, dtype=jnp.int32), **arrays}


def _identity(rows: dict, columns: dict, shared: dict) -> Block:
    return everywhere(same(rows, columns, "index"))


def _same_id(rows: dict, columns: dict, shared: dict) -> Block:
    return everywhere(same(rows, columns, "id"))


def _given(rows: dict, columns: dict, shared: dict) -> Block:
    row, column = (jnp.take(rows[side].astype(jnp.float32), columns["index"], axis=1) for side in ("row", "column"))
    return Block(row, column, jnp.ones(row.shape, bool))


def _softmax(rows: dict, columns: dict, shared: dict) -> Block:
    score_nxm = shared["scale"] * product(rows["x"], columns["y"].T)
    row, column = jnp.exp(score_nxm - rows["log_sum"][:, None]), jnp.exp(score_nxm - columns["log_sum"][None, :])
    return Block(row, column, jnp.ones(row.shape, bool))


def _stream_log_sums(rows: dict, columns: dict, shared: dict, row_state: Any, column_state: Any):
    score_nxm = shared["scale"] * product(rows["x"], columns["y"].T)
    keep_nxm = rows["real"][:, None] & columns["real"][None, :]
    return add_scores(row_state, score_nxm, keep_nxm, 1), add_scores(column_state, score_nxm, keep_nxm, 0)


def _overlap(rows: dict, columns: dict, shared: dict) -> Block:
    return everywhere(jnp.clip(product(rows["x"], columns["y"].T) + same(rows, columns, "index"), 0.0, 1.0))


def _without_duplicates(inner: Callable, rows: dict, columns: dict, shared: dict) -> Block:
    block = inner(rows, columns, shared)
    return block._replace(keep=block.keep & (~same(rows, columns, "hash") | same(rows, columns, "index")))


def _stream_mass(inner: Callable, rows: dict, columns: dict, shared: dict, mass_n: Array, mass_m: Array):
    block = inner(rows["targets"], columns["targets"], shared)
    keep_nxm = block.keep & (rows["real"] & rows["valid"])[:, None] & (columns["real"] & columns["valid"])[None, :]
    row_nxm, column_nxm = (jnp.where(keep_nxm, target, 0.0) for target in (block.row, block.column))
    return mass_n + jnp.sum(row_nxm, axis=1), mass_m + jnp.sum(column_nxm, axis=0)


def _normalized(inner: Callable, rows: dict, columns: dict, shared: dict) -> Block:
    block = inner(rows, columns, shared)
    return block._replace(row=block.row / rows["mass"][:, None], column=block.column / columns["mass"][None, :])
