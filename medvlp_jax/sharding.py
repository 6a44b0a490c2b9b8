"""Processes, mesh and the rules that place arrays on it."""

import contextlib
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from medvlp_jax.data import whole_files

AXES = ("data", "fsdp")
# Batches are split over both axes; parameters only over `fsdp`.
BATCH = PartitionSpec(AXES)
REPLICATED = PartitionSpec()
# (regex over the parameter path, rule), first match wins. `largest`: split the largest axis that `fsdp` divides.
PARAMETER_RULES: tuple[tuple[str, str], ...] = (
    (r".*(norm|positions|cls|bias|scale|mean|var|count|step|rng).*", "replicated"),
    (r".*", "largest"),
)
UNAVAILABLE = 69  # exit code of a process that waited in vain for others at the start: EX_UNAVAILABLE
JOIN_GRACE = 60  # seconds until JAX's own wait would end in an abort
ROLL_CALL_SECONDS = 2.0
SMALLEST_SPLIT = 2**14  # splitting a smaller array costs more in collectives than it saves in memory


def initialize_processes(workdir: str | Path, join_seconds: float) -> None:
    """Joins the other processes of a multi-process run, if there are any.

    Reads JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID (as `launch/local_multiprocess.sh` sets them);
    on Slurm and on TPU slices with several hosts JAX finds them itself.
    Does nothing when they are joined already. Processes that wait for others longer than `join_seconds` name those that
    have not come and end with exit code 69 (see `roll_call`).

    Args: workdir: the run folder, which all processes share.
    Raises: ValueError when only some of the three variables are set, or the numbers make no sense.
    """
    if jax.distributed.is_initialized():
        return
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    given = [name for name in names if os.environ.get(name)]
    if given and len(given) < len(names):
        missing = ", ".join(name for name in names if name not in given)
        raise ValueError(f"{', '.join(given)} set, but {missing} missing: a multi-process run needs all three.")
    if join_seconds <= 0:
        raise ValueError(f"join_seconds={join_seconds} must be more than 0. Give slow hosts minutes: 300.")
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    if given:
        address, count, index = (os.environ[name] for name in names)
        if not (count.isdecimal() and index.isdecimal() and int(index) < int(count)):
            raise ValueError(
                f"JAX_NUM_PROCESSES={count!r}, JAX_PROCESS_ID={index!r}: whole numbers, the id from 0 to the number of "
                "processes minus 1."
            )
        place, arguments = (int(index), int(count), address), (address, int(count), int(index))
    elif (tasks := int(os.environ.get("SLURM_NTASKS", "1"))) > 1:
        place, arguments = (int(os.environ.get("SLURM_PROCID", "0")), tasks, "the first node of the job"), ()
    elif len(hosts) > 1:
        place, arguments = (int(os.environ.get("TPU_WORKER_ID", "0")), len(hosts), hosts[0]), ()
    else:
        return
    with roll_call(Path(workdir) / "joining", *place, join_seconds):
        jax.distributed.initialize(*arguments, initialization_timeout=int(join_seconds) + JOIN_GRACE)


@contextlib.contextmanager
def roll_call(folder: Path, index: int, count: int, address: str, seconds: float) -> Iterator[None]:
    """While processes wait for each other inside, each shows in `folder` that it lives.

    JAX itself does not tell who is missing: its wait cannot be interrupted and ends in an abort. So after `seconds` a
    thread says which of the `count` processes have not come, and ends this one with exit code UNAVAILABLE.
    """
    joined = threading.Event()
    own = folder / str(index)

    def wait() -> None:
        start = time.monotonic()
        while not joined.wait(min(ROLL_CALL_SECONDS, seconds / 4)):
            with contextlib.suppress(OSError):
                folder.mkdir(parents=True, exist_ok=True)
                whole_files.write_text(own, socket.gethostname())  # others may be reading it
            if time.monotonic() - start > seconds:
                print(_who_is_missing(folder, index, count, address, seconds), file=sys.stderr, flush=True)
                os._exit(UNAVAILABLE)

    thread = threading.Thread(target=wait, name="roll-call", daemon=True)
    thread.start()
    try:
        yield
    finally:
        joined.set()
        thread.join()
        with contextlib.suppress(OSError):
            own.unlink(missing_ok=True)
            folder.rmdir()  # by the last one


def _who_is_missing(folder: Path, index: int, count: int, address: str, seconds: float) -> str:
    """The sentence for a start at which not all processes came."""
    here: dict[int, str] = {index: socket.gethostname()}
    with contextlib.suppress(OSError):
        # One clock, that of the shared disk, tells those who wait now from what an earlier start left behind.
        now = (folder / str(index)).stat().st_mtime
        for path in folder.iterdir():
            if path.name.isdecimal() and now - path.stat().st_mtime <= 3 * ROLL_CALL_SECONDS:
                here[int(path.name)] = path.read_text(encoding="utf-8")
    missing = [str(number) for number in range(count) if number not in here]
    came = ", ".join(f"{number} on {host}" for number, host in sorted(here.items()))
    words = f"TimeoutError: {len(here)} of {count} processes came within join_seconds={seconds:g} ({came}). "
    if missing:
        words += (
            f"Missing: {', '.join(missing)}. See whether their hosts are up and what their logs say (process_N.log of "
            "local_multiprocess.sh; Slurm: squeue and the job's log; TPU: launch/tpu_vm.sh status and log)."
        )
    else:
        words += (
            f"All came to {folder}, but they did not reach each other at {address}: is its port open between hosts?"
        )
    same = f"Check that all have the same workdir and JAX_NUM_PROCESSES={count}."
    return f"{words} {same} Slow hosts need more join_seconds."


def make_mesh(data: int = -1, fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Mesh with axes `data` and `fsdp`. One of the sizes may be -1: all devices that the other leaves over.

    Of several TPU slices the data axis crosses the data-centre network, each slice holding one run of it.

    Raises: ValueError when the sizes do not multiply to the number of devices.
    """
    devices = list(devices or jax.devices())
    sizes = {"data": data, "fsdp": fsdp}
    if any(size == 0 or size < -1 for size in sizes.values()) or list(sizes.values()) == [-1, -1]:
        raise ValueError(f"mesh.data={data}, mesh.fsdp={fsdp}: sizes are positive, and one of them may be -1.")
    for name, size in sizes.items():
        if size == -1:
            other = fsdp if name == "data" else data
            sizes[name] = max(len(devices) // other, 1)
    if sizes["data"] * sizes["fsdp"] != len(devices):
        raise ValueError(
            f"mesh.data={data} x mesh.fsdp={fsdp} does not make {len(devices)} devices. "
            f"Use mesh.data=-1 and a mesh.fsdp that divides {len(devices)}: {_divisors(len(devices))}."
        )
    types = (AxisType.Auto,) * len(AXES)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices > 1:
        if sizes["data"] % slices:
            raise ValueError(
                f"mesh.data={sizes['data']} does not split over {slices} slices; only the data axis may cross them."
            )
        within = (sizes["data"] // slices, sizes["fsdp"])
        return Mesh(mesh_utils.create_hybrid_device_mesh(within, (slices, 1), devices), AXES, axis_types=types)
    return jax.make_mesh((sizes["data"], sizes["fsdp"]), AXES, axis_types=types, devices=devices)


def check_batch(batch_size: int, mesh: Mesh, name: str = "batch_size", parts: int = 1) -> None:
    """Raises: ValueError unless `batch_size` splits evenly over the devices of the mesh, in `parts` on each of them."""
    if parts < 1:
        raise ValueError(f"micro_batches={parts} must be 1 or more.")
    count = mesh.devices.size * parts
    if batch_size < 1 or batch_size % count:
        below = max(batch_size // count, 0) * count
        above = below + count
        nearest = f"{below} or {above}" if below else f"{above}"
        resumed = ""
        if name == "batch_size" and batch_size > 0 and batch_size % parts == 0:
            resumed = (
                f" A run that began with it goes on with another number of devices: {_divisors(batch_size // parts)}."
            )
        raise ValueError(
            f"{name}={batch_size} is not divisible by the {mesh.devices.size} devices on mesh axes "
            f"data={mesh.shape['data']} x fsdp={mesh.shape['fsdp']}{f' times micro_batches={parts}' * (parts > 1)}. "
            f"Use a multiple of {count} ({nearest}).{resumed}"
        )


def _divisors(number: int) -> str:
    found = [str(n) for n in range(1, number + 1) if number % n == 0]
    return ", ".join(found if len(found) <= 8 else [*found[:7], "...", found[-1]])


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Leading axis over all devices."""
    return NamedSharding(mesh, BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, REPLICATED)


def parameter_sharding(tree: Any, mesh: Mesh, rules: Sequence[tuple[str, str]] = PARAMETER_RULES) -> Any:
    """Shardings for a tree of arrays or shape structs, by the first rule whose regex matches the path.

    Optimizer moments carry their parameter's path and so its sharding.
    Raises: ValueError for a rule that is neither `replicated` nor `largest`, or a path that no rule matches.
    """

    def place(path, leaf):
        name = "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)
        for pattern, rule in rules:
            if re.fullmatch(pattern, name):
                return NamedSharding(mesh, _spec(rule, leaf.shape, mesh.shape["fsdp"]))
        raise ValueError(f"No sharding rule matches {name!r}; end the rules with ('.*', 'replicated').")

    return jax.tree_util.tree_map_with_path(place, tree)


def _spec(rule: str, shape: tuple[int, ...], fsdp: int) -> PartitionSpec:
    if rule not in ("replicated", "largest"):
        raise ValueError(f"Unknown sharding rule {rule!r}. Choose one of replicated, largest.")
    if rule == "replicated" or fsdp == 1 or np.prod(shape, dtype=np.int64) < SMALLEST_SPLIT:
        return REPLICATED
    axes = [axis for axis in np.argsort(shape)[::-1] if shape[axis] % fsdp == 0]
    return PartitionSpec(*("fsdp" if axis == axes[0] else None for axis in range(len(shape)))) if axes else REPLICATED
