"""What a program costs: FLOPs from its shapes; memory, traffic and collectives as the compiler tells them."""

import dataclasses
import math
import re
from collections import Counter
from typing import Any

import jax
import numpy as np

from medvlp_jax.plan import traffic

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Cost:
    """Per device.

    arguments, temporaries, total: bytes of memory. flops: as the compiler counts them, loop bodies once.
    memory_traffic (bytes read and written) and seconds (None where it has no estimate): the compiler's, which count
    loop bodies once, times `loops`: how many times more the program moves when they count by the length of the loop.
    collectives: kind -> (count, bytes of their results).
    """

    arguments: int
    temporaries: int
    total: int
    flops: float
    memory_traffic: float
    seconds: float | None
    loops: float
    collectives: dict[str, tuple[int, int]]


def cost(compiled: jax.stages.Compiled) -> Cost:
    """What the compiler says of a compiled program."""
    memory, analysis = compiled.memory_analysis(), compiled.cost_analysis() or {}
    total = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )
    seconds, hlo = analysis.get("optimal_seconds", -1.0), compiled.as_text()
    loops = traffic.loop_factor(traffic.Program(hlo))
    return Cost(
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        total=total,
        flops=analysis.get("flops", 0.0),
        memory_traffic=loops * analysis.get("bytes accessed", 0.0),
        seconds=loops * seconds if seconds > 0 else None,
        loops=loops,
        collectives=collectives(hlo),
    )


def collectives(hlo: str) -> dict[str, tuple[int, int]]:
    """Kind -> how many collectives, and the bytes of their results, in the text of a compiled program.

    Asynchronous pairs count once, fusions that scatter what they reduce (`all-reduce-scatter`) as reduce-scatter.
    """
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    seen = set()
    pattern = re.compile(rf"= (.*?) ({'|'.join(COLLECTIVES)})(-start)?\(")
    for line in hlo.splitlines():
        match = pattern.search(line)
        if not match:
            continue
        channel = re.search(r"channel_id=(\d+)", line)
        key = (match[2], channel[1] if channel else line)
        if key in seen:
            continue
        seen.add(key)
        arrays = re.findall(r"(\w+)\[([\d,]+)\]", match[1])
        if match[3] and match[2] in ("all-gather", "collective-permute"):
            arrays = arrays[len(arrays) // 2 :]  # what such a start returns holds its operands first
        counts[match[2]] += 1
        sizes[match[2]] += sum(
            traffic.BYTES.get(t, 4) * math.prod(int(n) for n in s.split(",") if n) for t, s in arrays
        )
    scattered = len(set(re.findall(r"%(all-reduce-scatter[\w.]*) = ", hlo)))
    if scattered:
        counts["reduce-scatter"] += scattered
    return {kind: (counts[kind], sizes[kind]) for kind in COLLECTIVES if counts[kind]}


def count_flops(jaxpr: Any, *, loops: bool = True) -> float:
    """FLOPs of the matrix products and convolutions of a jaxpr, two per multiplication, loops times their length.

    Everything else (norms, activations, softmax) is left out, as is usual for model FLOPs.
    Args: loops: False counts the body of a loop once, as compilers do.
    """
    total = 0.0
    for eqn in jaxpr.eqns:
        name, params = eqn.primitive.name, eqn.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            depth = math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
            total += 2.0 * depth * np.prod(eqn.outvars[0].aval.shape, dtype=np.float64)
        elif name == "conv_general_dilated":
            kernel, spec = eqn.invars[1].aval.shape, params["dimension_numbers"].rhs_spec
            per_output = np.prod(kernel, dtype=np.float64) / kernel[spec[0]]  # [O, I, spatial...] in `spec` order
            total += 2.0 * per_output * np.prod(eqn.outvars[0].aval.shape, dtype=np.float64)
        elif inner := [count_flops(part, loops=loops) for part in _inside(eqn)]:
            length = params.get("length", 1) if loops else 1
            repeated = {"scan": length, "shard_map": getattr(params.get("mesh"), "size", 1)}
            # Of the branches of a cond one runs; alternatives for platforms are such branches.
            total += repeated.get(name, 1) * (max(inner) if name == "cond" else sum(inner))
    return float(total)


def largest_arrays(jaxpr: Any, chips: int, count: int = 5) -> list[str]:
    """The largest arrays of the forward pass, as lines: bytes per chip when they are split, shape, and how many."""
    sizes: Counter[str] = Counter()
    number: Counter[str] = Counter()

    def walk(jaxpr: Any) -> None:
        for eqn in jaxpr.eqns:
            inside = _inside(eqn)
            # Of the branches of a cond the last: texts at their full length, what runs where no platform is named.
            for part in inside[-1:] if eqn.primitive.name == "cond" else inside:
                walk(part)
            for var in eqn.outvars:
                shape = getattr(var.aval, "shape", ())
                key = f"{var.aval.dtype.name}{list(shape)}" if shape else ""
                if key:
                    sizes[key] = int(np.prod(shape, dtype=np.int64)) * getattr(var.aval.dtype, "itemsize", 4)
                    number[key] += 1

    walk(jaxpr)
    lines = []
    for key, size in sizes.most_common(count):
        lines.append(f"{size / chips / 2**20:8.1f} MiB per chip: {key}, {number[key]} of them in the forward pass")
    return lines


def _inside(eqn: Any) -> list[Any]:
    """The jaxprs that an equation holds: loop body, branches, inlined functions."""
    held = [part for value in eqn.params.values() for part in (value if isinstance(value, tuple) else (value,))]
    return [inner for inner in (getattr(part, "jaxpr", part) for part in held) if hasattr(inner, "eqns")]
