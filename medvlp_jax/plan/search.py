"""Searches around a plan: what makes a step fit that does not, and the largest batch that does. Compiles are cached."""

import hashlib
import json
import os
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from medvlp_jax import config as configs
from medvlp_jax import sharding, text_tower
from medvlp_jax.plan import costs, topology
from medvlp_jax.plan.compiled import cost

REMEDIES = (
    {"micro_batches": 2},
    {"micro_batches": 4},
    {"micro_batches": 8},
    {"model.trunk.remat": True},
    {"mesh.fsdp": -1, "mesh.data": 1},
    {"pairs.schedule": "ring"},
)
STEP = 8  # per-chip batches are tried in multiples of the sublane width


def remedies(
    config: Any, slice_: topology.Topology, *, say: Callable[[str], None] = print, **settings: int
) -> dict[str, int | None]:
    """Config fields that could make the step fit, each compiled: bytes per chip, or None where it does not fit either.

    Stops at the first micro-batch count that fits.
    """
    found: dict[str, int | None] = {}
    for fields in REMEDIES:
        words = " --config.".join(f"{name}={value}" for name, value in fields.items())
        if "micro_batches" in fields and any(v for k, v in found.items() if k.startswith("micro_batches")):
            continue
        changed = _changed(config, fields)
        try:
            say(f"trying --config.{words}")
            found[words] = bytes_per_chip(changed, slice_, **settings)
        except ValueError as error:  # a field that this batch or mesh does not allow
            say(f"  not possible: {error}")
    return found


def largest_batch(config: Any, slice_: topology.Topology, **settings: int) -> int:
    """Examples per chip, a multiple of 8, that fit; 0 when 8 do not. Doubling, then bisection."""
    chips = len(slice_.devices)

    def fits(units: int) -> bool:
        return bytes_per_chip(_changed(config, {"batch_size": units * STEP * chips}), slice_, **settings) is not None

    low = max(config.batch_size // chips // STEP, 1)
    while low > 1 and not fits(low):
        low //= 2
    if not fits(low):
        return 0
    high = low * 2
    while fits(high):
        low, high = high, high * 2
    while high - low > max(low // 8, 1):  # within an eighth
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low * STEP


def bytes_per_chip(config: Any, slice_: topology.Topology, *, examples: int, text_width: int) -> int | None:
    """Memory that the step takes on a chip, None when it does not fit; remembered in the user's cache folder."""
    file = _cache_file(config, slice_.name, text_width)
    if file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))["bytes"]
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, slice_.devices)
    lowered = costs.lower_step(config, mesh, text_width=text_width, examples=examples, say=lambda line: None)
    program, _ = topology.compile_for_chip(lowered.step, slice_)
    total = cost(program).total if program else None
    remember(config, slice_, total, text_width=text_width)
    return total


def remember(config: Any, slice_: topology.Topology, total: int | None, *, text_width: int) -> None:
    """Keeps for `bytes_per_chip` what a program takes that was compiled; None: it does not fit."""
    file = _cache_file(config, slice_.name, text_width)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"bytes": total, "topology": slice_.name}), encoding="utf-8")


def _changed(config: Any, fields: dict[str, Any]) -> Any:
    changed = config.copy_and_resolve_references()
    with changed.unlocked():
        changed.update_from_flattened_dict(fields)
    return changed


def _cache_file(config: Any, name: str, text_width: int) -> Path:
    """Keyed by all that decides the program: config, slice, width, versions, and this package's own files."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "medvlp_jax" / "plan"
    versions = {package: metadata.version(package) for package in ("jax", "flax", "optax")}
    sources = hashlib.sha256()
    for file in sorted(Path(__file__).parents[1].rglob("*.py")):
        sources.update(file.read_bytes())
    text = None if config.text.cache else vars(text_tower.outline(config, lambda line: None).config)
    key = json.dumps(
        [configs.flat(config), name, text_width, text, versions, sources.hexdigest()], sort_keys=True, default=str
    )
    return root / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
