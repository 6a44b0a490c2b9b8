"""TPU slices that are not there: their chips, and compiling for them on any machine with the extra `tpu`."""

import dataclasses
import importlib.util
import os
import re
from typing import Any

import jax

# Messages of the TPU compiler that mean nothing without a TPU, and its lock against a second process.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
}
# Compiles six times faster than the default; memory within 1 %, FLOPs and collectives the same.
FAST = {"exec_time_optimization_effort": -1.0}


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip, as Google Cloud's documentation of Cloud TPU gives it.

    flops: peak bfloat16 FLOP/s. memory: HBM bytes that a program may use. memory_bandwidth, network: bytes/s; `network`
    counts one direction of all inter-chip links. shapes: slices, as examples.
    """

    flops: float
    memory: float
    memory_bandwidth: float
    network: float
    shapes: tuple[str, ...]


CHIPS = {
    "v4": Chip(275e12, 32 * 2**30, 1.2e12, 300e9, ("2x2x1", "2x2x4", "4x4x4", "8x8x16")),
    "v5e": Chip(197e12, 15.75 * 2**30, 819e9, 200e9, ("2x2", "2x4", "4x4", "4x8", "8x8", "16x16")),
    "v5p": Chip(459e12, 95 * 1e9, 2765e9, 600e9, ("2x2x1", "2x2x4", "4x4x4", "8x8x8")),
    "v6e": Chip(918e12, 31.25 * 2**30, 1638e9, 400e9, ("2x2", "4x4", "8x8", "16x16")),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A described slice: its chip and the devices that programs are compiled for."""

    name: str
    kind: str
    chip: Chip
    devices: list[Any]


def prepare_environment() -> None:
    """Sets what the TPU compiler wants to find, where the user has not; before JAX starts."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def describe(name: str) -> Topology:
    """The slice called `name`, such as `v5e:4x4`; one device per chip. `v5e:16x16*2` is two slices joined over DCN.

    Raises: ValueError for a name that is none, listing examples; ImportError without the TPU compiler.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)+)(?:\*([1-9]\d*))?", name)
    examples = "; ".join(f"{kind}: {', '.join(chip.shapes)}" for kind, chip in CHIPS.items())
    if not match or match[1] not in CHIPS:
        raise ValueError(f"Unknown topology {name!r}. A name is KIND:SHAPE, optionally *SLICES. Known: {examples}.")
    if importlib.util.find_spec("libtpu") is None:
        raise ImportError(
            f"Compiling for {name} needs the TPU compiler: pip install -c constraints.txt -e '.[tpu]' (no TPU needed)."
        )
    from jax.experimental import topologies

    kind, shape, slices = match[1], match[2], int(match[3] or 1)
    extra = {"chip_config_name": "megacore"} if kind in ("v4", "v5p") else {}
    if slices > 1:
        extra["num_slices"] = slices
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=f"{kind}:{shape}", **extra).devices
    except Exception as error:
        raise ValueError(f"The TPU compiler refuses topology {name!r} ({error}). Known: {examples}.") from error
    return Topology(name, kind, CHIPS[kind], list(devices))


def compile_for_chip(
    lowered: jax.stages.Lowered, slice_: Topology, *, fast: bool = True
) -> tuple[jax.stages.Compiled | None, str | None]:
    """Compiles a program that was lowered for the slice.

    Returns: the program, or None and what the compiler says of memory when it does not fit a chip.
    Raises: any other error of the compiler.
    """
    options = FAST if fast and slice_.devices[0].platform == "tpu" else {}
    try:
        return lowered.compile(compiler_options=options), None
    except jax.errors.JaxRuntimeError as error:
        refused = too_large(error)
        if refused is None:
            raise
        return None, refused


def too_large(error: Exception) -> str | None:
    """What the compiler says when a program does not fit its chip's memory; None for any other error."""
    text = str(error)
    found = re.search(r"RESOURCE_EXHAUSTED: (.*?exceeds available HBM[^.]*\.\d+\w*\)?)", text, re.DOTALL)
    return found[1].replace("\n", " ") if found else ("out of memory" if "RESOURCE_EXHAUSTED" in text else None)
