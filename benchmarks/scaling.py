"""Measures the tables of docs/scaling.md and writes them there, row by row.

    python -m benchmarks.scaling                                # every table: hours on two cores
    python -m benchmarks.scaling --only plans --rows v6e:4x4    # some rows; the others stay as they are
    python -m benchmarks.scaling --only traffic --check         # prints what differs, changes nothing
    python -m benchmarks.scaling --list                         # tables, rows, and about how long they take

Plans, traffic and memory need the extra `tpu` (the compiler, no TPU), the last side of `speed_one` the extra `torch`.
Speeds mean something on an idle machine only.
"""

import argparse
import functools
import gc
import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from medvlp_jax.plan import topology

topology.prepare_environment()

from benchmarks import loss_memory, pairwise, tables, traffic  # noqa: E402
from medvlp_jax import methods  # noqa: E402
from medvlp_jax.plan import costs  # noqa: E402

PAGE = Path(__file__).resolve().parents[1] / "docs" / "scaling.md"
EXAMPLES = 217_000  # pairs of MIMIC-CXR; 50 epochs of them are the run whose hours are given
RECIPE = {"epochs": 50}
METHODS_BATCH = 1024  # of the plans of all methods: 64 per chip of v5e:4x4
CONFIGS = {"composed": "hierarchical_local"}  # where a method has none of its own name
# What follows `--topology`, as it is typed; the batch is the recipe's 1,024 unless said otherwise.
PLANS = (
    "v5e:4x4",
    "v5e:4x4 --config.text.cache=False",
    "v5e:16x16",
    "v5e:16x16 --config.batch_size=16384",
    "v5e:4x4*2 --config.batch_size=2048",
    "v4:2x2x4",
    "v5p:2x2x4",
    "v6e:4x4",
)
# slice, batch -> schedule -> examples along one side of a tile
SCHEDULES = {
    ("v5e:4x4", 4096): {"dense": 2048},
    ("v5e:4x4", 32768): {"dense": 2048, "chunked": 2048, "ring": 2048},
    ("v5e:4x4", 131072): {"chunked": 2048, "ring": 512},
    ("v5e:16x16", 131072): {"ring": 2048},
}
RING = {"v5e:4x4": 16, "v5e:8x8": 64, "v5e:16x16": 256, "v4:8x8x8": 512, "v4:8x8x16": 1024, "v4:8x16x16": 2048}
WORD_REGION = ((512, 196, 64), (2048, 196, 64), (1024, 361, 97))


def plan(name: str, fields: dict[str, Any], method: str = "imitate") -> costs.Plan:
    """The plan of a method's full recipe with some fields changed."""
    config = importlib.import_module(f"configs.{CONFIGS.get(method, method)}").get_config().unlock()
    config.update_from_flattened_dict({**RECIPE, **fields})
    gc.collect()  # a compiled step holds gigabytes
    return costs.make_plan(config.lock(), topology.describe(name), examples=EXAMPLES, text_width=768)


def plan_row(key: str) -> list[str]:
    """One row of plans."""
    name, *words = key.split()
    fields = dict(word.removeprefix("--config.").split("=") for word in words)
    values = {field: value == "True" if value in ("True", "False") else int(value) for field, value in fields.items()}
    p = plan(name, values)
    if p.fits:
        return [f"`{key}`", p.fits, *["-"] * 5]
    estimate = p.compiled.seconds
    bound = max(p.bounds, key=p.bounds.get)
    return [
        f"`{key}`",
        f"{p.memory['total'] / 2**30:.2f} of {p.memory_limit / 2**30:.2f} GiB",
        f"{p.compiled.memory_traffic * p.chips / p.batch_size / 2**20:.0f} MiB",
        f"{1e3 * p.step_seconds:.1f} ms ({bound})",
        f"{1e3 * estimate:.1f} ms" if estimate else "-",
        f"{100 * p.mfu:.0f} %",
        f"{p.hours:.2f} h" + (f" ({p.hours * estimate / p.step_seconds:.2f} h)" if estimate else ""),
    ]


def method_row(key: str) -> list[str]:
    """One row of the plans of all methods."""
    p = plan("v5e:4x4", {"batch_size": METHODS_BATCH}, key)
    state = f"{(p.memory['parameters'] + p.memory['optimizer']) / 2**30:.2f} GiB"
    if p.fits:
        return [key, state, "does not fit", *["-"] * 3]
    return [
        key,
        state,
        f"{p.memory['total'] / 2**30:.2f} of {p.memory_limit / 2**30:.2f} GiB",
        f"{p.model_flops / p.batch_size / 1e9:.0f} GFLOP",
        f"{1e3 * p.step_seconds:.1f} ms ({max(p.bounds, key=p.bounds.get)})",
        f"{1e3 * p.compiled.seconds:.1f} ms" if p.compiled.seconds else "-",
    ]


def traffic_row(key: str) -> list[str]:
    """One row of the step as it was changed."""
    with traffic.variant(key) as fields:
        p = plan("v5e:4x4", fields)
    c = p.compiled
    per_image = c.memory_traffic * p.chips / p.batch_size / 2**20
    return [key, f"{per_image:.0f} MiB", f"{1e3 * c.seconds:.1f} ms", f"{c.temporaries / 2**30:.2f} GiB"]


def schedule_row(key: str) -> list[str]:
    """One row of schedules by batch."""
    name, batch = key.split(", ")
    size = int(batch.replace(",", ""))
    chunks = SCHEDULES[name, size]
    cells = []
    for schedule in ("dense", "chunked", "ring"):
        used = loss_memory.soft_pairs(name, size, schedule, chunks[schedule]) if schedule in chunks else ""
        cells.append(f"{used} (chunk {chunks[schedule]:,})" if used and schedule == "ring" else used)
    return [key, *cells]


def ring_row(key: str) -> list[str]:
    """One row of the ring by number of chips."""
    batch = 512 * RING[key]
    return [key, f"{RING[key]:,}", f"{batch:,}", loss_memory.soft_pairs(key, batch, "ring")]


def word_region_row(key: str) -> list[str]:
    """One row of word-region scores."""
    batch, regions, words = (int(word.replace(",", "")) for word in key.split(" × "))
    return [key, *(loss_memory.word_region("v5e:4x4", batch, regions, words, s) for s in ("dense", "chunked"))]


def equality_row(key: str) -> list[str]:
    """The worst errors over everything."""
    return [key, *(f"{error:.1e}".replace("e-0", "e-") for error in pairwise.equality())]


def speed_rows(keys: Sequence[str], *, sides: dict[str, str]) -> Iterator[list[str]]:
    """All sides in turns, whatever rows were asked for; ratios to the first one. sides: row -> side."""
    seconds = pairwise.speed(list(sides.values()), rounds=7)
    first = next(iter(seconds.values()))
    for key, side in sides.items():
        yield [key, f"{1e3 * seconds[side]:.0f}", f"{seconds[side] / first:.2f}"]


def _each(row):
    return lambda keys: map(row, keys)


def _speeds(sides: dict[str, str]) -> tables.Table:
    return tables.Table(("side", "ms", "ratio"), tuple(sides), functools.partial(speed_rows, sides=sides), 30)


TABLES = {
    "equality": tables.Table(("schedules", "loss", "gradients"), ("dense, chunked, ring",), _each(equality_row), 200),
    "schedules": tables.Table(
        ("slice, batch", "dense", "chunked, 2,048", "ring"),
        tuple(f"{name}, {batch:,}" for name, batch in SCHEDULES),
        _each(schedule_row),
        60,
    ),
    "ring": tables.Table(("slice", "chips", "batch", "scratch"), tuple(RING), _each(ring_row), 15),
    "word_region": tables.Table(
        ("batch × regions × words", "dense", "chunked"),
        tuple(f"{batch:,} × {regions} × {words}" for batch, regions, words in WORD_REGION),
        _each(word_region_row),
        90,
    ),
    "speed_eight": _speeds({side: side for side in pairwise.EIGHT_DEVICES}),
    "speed_one": _speeds({"PyTorch, what `open_clip`'s ClipLoss computes": "torch", "ours, dense": "softmax"}),
    "plans": tables.Table(
        ("slice", "memory", "traffic per image", "step at peak rates", "compiler's estimate", "MFU", "50 epochs"),
        tuple(f"`{key}`" for key in PLANS),
        lambda keys: (plan_row(key.strip("`")) for key in keys),
        60,
    ),
    "methods": tables.Table(
        ("method", "parameters and optimizer", "memory", "FLOPs per pair", "step at peak rates", "compiler's estimate"),
        tuple(sorted(methods.METHODS)),
        _each(method_row),
        120,
    ),
    "traffic": tables.Table(
        ("step", "HBM traffic per image", "compiler's estimate", "temporaries"),
        tuple(traffic.VARIANTS),
        _each(traffic_row),
        60,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=tuple(TABLES), help="a table; may be repeated")
    parser.add_argument("--rows", default="", help="only rows whose first cell contains this")
    parser.add_argument("--check", action="store_true", help="print what differs from the page, change nothing")
    parser.add_argument("--list", action="store_true", help="print tables and rows")
    flags = parser.parse_args()
    changed = False
    for name in flags.only or TABLES:
        table = TABLES[name]
        keys = [key for key in table.keys if flags.rows in key]
        if flags.list or not keys:
            print(f"{name}: {'; '.join(table.keys)}   (about {table.seconds * len(table.keys) // 60} min)")
            continue
        print(f"{name}:", flush=True)
        changed |= tables.update(PAGE, name, table, keys, check=flags.check)
    if flags.check:
        raise SystemExit(int(changed))


if __name__ == "__main__":
    main()
