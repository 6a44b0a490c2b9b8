"""How a function of all pairs is taken over tiles of pairs: at once, by chunks of columns, or round a ring of devices.

A *visit* is a pure function `(rows, columns, shared, row_state, column_state) -> (row_state, column_state)` of a block
of rows and a block of columns. Rows, columns and states are trees of arrays with one entry per example on the leading
axis. A `Sweep` calls it so that every pair is visited once. Nothing here knows about losses.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

SCHEDULES = ("dense", "chunked", "ring")
CHUNK = 2048  # examples along one side of a tile
AXES = ("data", "fsdp")

Visit = Callable[[dict, dict, Any, Any, Any], tuple[Any, Any]]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """One way through all pairs. Calling it gives the final states of rows and columns.

    The blocks that a visit sees carry `real` (bool): False for an example that only fills up a block. Padding is zeros.

    Attributes:
      schedule: `dense`: one visit of everything. `chunked`: a scan over chunks of columns, each of them gathered when
        its turn comes. `ring`: under `shard_map`, every device keeps its rows and passes its columns, with their state,
        to its neighbour until they are home again.
      chunk: examples along one side of a tile: columns of all devices (`chunked`), rows of one device (`ring`).
      mesh: where the batch is sharded; `ring` needs it, `chunked` uses it to keep the batch where it is.
      axes: the mesh axes that the batch is split over.
    """

    schedule: str = "dense"
    chunk: int = CHUNK
    mesh: Mesh | None = None
    axes: tuple[str, ...] = AXES

    def __post_init__(self):
        if self.schedule not in SCHEDULES:
            raise ValueError(f"Unknown schedule {self.schedule!r}. Choose one of {', '.join(SCHEDULES)}.")
        if self.chunk < 1:
            raise ValueError(f"chunk={self.chunk} must be positive.")
        if self.schedule == "ring" and self.mesh is None:
            raise ValueError("schedule='ring' needs the mesh that the batch is sharded over.")

    @property
    def devices(self) -> int:
        """Devices that the batch is split over."""
        return 1 if self.mesh is None else math.prod(self.mesh.shape[axis] for axis in self.axes)

    def place(self, x: jax.Array, *spec: Any) -> jax.Array:
        """`x` with axes placed on mesh axes as `spec` says, where there is a mesh."""
        if self.mesh is None:
            return x
        return lax.with_sharding_constraint(x, NamedSharding(self.mesh, PartitionSpec(*spec)))

    def split(self, x: jax.Array, size: int) -> jax.Array:
        """[N, ...] -> [chunks, devices * size, ...]: every chunk takes `size` examples of every device; zeros fill up.

        So no example moves to another device before its chunk is gathered.
        """
        x = _padded(x.reshape(self.devices, -1, *x.shape[1:]), size, axis=1)
        x = x.reshape(self.devices, -1, size, *x.shape[2:]).swapaxes(0, 1)
        return self.place(x.reshape(-1, self.devices * size, *x.shape[3:]), None, self.axes)

    def join(self, x: jax.Array, total: int) -> jax.Array:
        """The first `total` examples that `split` made chunks of."""
        x = x.reshape(x.shape[0], self.devices, -1, *x.shape[2:]).swapaxes(0, 1)
        x = x.reshape(self.devices, -1, *x.shape[3:])[:, : total // self.devices]
        return self.place(x.reshape(total, *x.shape[2:]), self.axes)

    def __call__(self, visit: Visit, rows: dict, columns: dict, shared: Any, row_state: Any, column_state: Any):
        sides = [{**side, "real": jnp.ones(_length(side), bool)} for side in (rows, columns)]
        for name, side in zip(("rows", "columns"), sides, strict=True):
            if _length(side) % self.devices:
                raise ValueError(f"{_length(side)} {name} do not split over {self.devices} devices.")
        walk = {"dense": _dense, "chunked": _chunked, "ring": _ring}[self.schedule]
        return walk(self, visit, *sides, shared, row_state, column_state)


def _length(side: Any) -> int:
    return jax.tree.leaves(side)[0].shape[0]


def _dense(sweep, visit, rows, columns, shared, row_state, column_state):
    return visit(rows, columns, shared, row_state, column_state)


def _chunked(sweep, visit, rows, columns, shared, row_state, column_state):
    total = _length(columns)
    size = min(max(sweep.chunk // sweep.devices, 1), total // sweep.devices)

    def step(row_state, chunk):
        columns, column_state = chunk
        columns = jax.tree.map(sweep.place, columns)  # gathered: a tile has its rows at home and all its columns
        states = visit(rows, columns, shared, row_state, column_state)
        return jax.tree.map(lambda x: sweep.place(x, sweep.axes), states)

    chunks = jax.tree.map(lambda x: sweep.split(x, size), (columns, column_state))
    row_state, column_state = lax.scan(step, row_state, chunks)
    return row_state, jax.tree.map(lambda x: sweep.join(x, total), column_state)


def _ring(sweep, visit, rows, columns, shared, row_state, column_state):
    devices = sweep.devices
    own = _length(rows) // devices
    size = min(sweep.chunk, own)

    def tiles(rows, columns, shared, row_state, column_state):
        """One hop: the rows of this device, by chunks, with the columns that are here now."""
        if size == own:
            return visit(rows, columns, shared, row_state, column_state)

        def step(column_state, chunk):
            row_state, column_state = visit(chunk[0], columns, shared, chunk[1], column_state)
            return column_state, row_state

        by_chunk = jax.tree.map(functools.partial(_by_chunk, size=size), (rows, row_state))
        column_state, row_state = lax.scan(step, column_state, by_chunk)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:own], row_state), column_state

    def on_device(rows, columns, shared, row_state, column_state):
        def hop(carry, _):
            columns, row_state, column_state = carry
            row_state, column_state = tiles(rows, columns, shared, row_state, column_state)
            neighbour = [(i, (i + 1) % devices) for i in range(devices)]
            columns, column_state = jax.tree.map(
                lambda x: lax.ppermute(x, sweep.axes, neighbour), (columns, column_state)
            )
            return (columns, row_state, column_state), None

        if devices == 1:
            return tiles(rows, columns, shared, row_state, column_state)
        (_, row_state, column_state), _ = lax.scan(hop, (columns, row_state, column_state), length=devices)
        return row_state, column_state

    split, whole = PartitionSpec(sweep.axes), PartitionSpec()
    walk = jax.shard_map(
        on_device, mesh=sweep.mesh, in_specs=(split, split, whole, split, split), out_specs=(split, split)
    )
    return walk(rows, columns, shared, row_state, column_state)


def _by_chunk(x, *, size: int):
    x = _padded(x, size, axis=0)
    return x.reshape(-1, size, *x.shape[1:])


def _padded(x, size: int, *, axis: int):
    missing = -x.shape[axis] % size
    if not missing:
        return x
    return jnp.pad(x, [(0, missing if a == axis else 0) for a in range(x.ndim)])


@dataclasses.dataclass(frozen=True)
class Choice:
    """What `choose` decided: the schedule, the bytes per device that each one would hold, and why, in words."""

    schedule: str
    bytes_per_device: dict[str, int]
    reason: str


def choose(
    rows: int,
    columns: int,
    width: int,
    *,
    devices: int = 1,
    chunk: int = CHUNK,
    element_bytes: int = 4,
    budget_bytes: int = 512 * 2**20,
) -> Choice:
    """`schedule='auto'`: dense while its tile fits the budget, else by tiles; a ring where there are several devices.

    The bytes are those of a loss with soft targets and its gradients: dense holds about five float32 copies of its
    rows × columns tile; tiled schedules hold four copies of one tile, the embeddings that visit, and their gradients.

    Args:
      rows, columns: of the global batch; width: of the embeddings; element_bytes: of one number of them.
      budget_bytes: what the loss may hold on one device.

    Raises: ValueError when no schedule fits, with the bytes of each.
    """
    own_rows, own_columns = -(-rows // devices), -(-columns // devices)
    gradients = 4 * width * (own_rows + own_columns)
    chunk_columns = min(chunk, columns)
    held = {
        "dense": 5 * 4 * own_rows * columns + columns * width * (element_bytes + 4),
        "chunked": 4 * 4 * own_rows * chunk_columns + chunk_columns * width * (element_bytes + 4) + gradients,
        "ring": 4 * 4 * min(own_rows, chunk) * own_columns + own_columns * width * (element_bytes + 4) + gradients,
    }
    sizes = ", ".join(f"{name} {value / 2**20:.1f} MiB" for name, value in held.items())
    for name in ("dense", "ring", "chunked") if devices > 1 else ("dense", "chunked"):
        if held[name] <= budget_bytes:
            why = "is the simplest" if name == "dense" else "holds one tile instead of all pairs"
            reason = f"{name} {why} and fits {budget_bytes / 2**20:.0f} MiB per device (predicted: {sizes})"
            return Choice(name, held, reason)
    raise ValueError(
        f"No schedule keeps a pairwise loss of {rows} x {columns} on {devices} device(s) within "
        f"{budget_bytes / 2**20:.0f} MiB per device ({sizes}). Use a smaller batch, more devices, a smaller chunk "
        "(pairs.chunk), or a larger budget (pairs.budget_mib)."
    )
