"""Memory of losses over all pairs on TPU slices that are not there; the tables are those of `benchmarks/scaling.py`.

Scratch is what the TPU compiler needs per chip for the loss and its gradients besides their arguments and results, at
default effort. Small figures mean that tiles stayed in on-chip memory.
"""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from medvlp_jax import sharding
from medvlp_jax.losses.clinical_prior import prior_targets
from medvlp_jax.losses.contrastive import contrastive
from medvlp_jax.losses.schedules import Sweep
from medvlp_jax.losses.word_region import word_region_loss
from medvlp_jax.plan import topology

HALF = jnp.bfloat16


def soft_pairs(name: str, batch: int, schedule: str, chunk: int = 2048) -> str:
    """Scratch with IMITATE's soft targets: embeddings and report vectors of width 512 in bfloat16."""

    def make_loss(mesh):
        sweep = Sweep(schedule, chunk, mesh)

        def loss(x_BxD, y_BxD, report_BxE):
            rule = {"temperature": 0.07, "mass": "batch_invariant", "dtype": HALF, "sweep": sweep}
            targets = prior_targets(report_BxE, **rule)
            return contrastive(x_BxD, y_BxD, temperature=0.07, targets=targets, dtype=HALF, sweep=sweep)

        return loss

    return _scratch(name, make_loss, (jax.ShapeDtypeStruct((batch, 512), HALF),) * 3)


def word_region(name: str, batch: int, regions: int, words: int, schedule: str) -> str:
    """Scratch of word-region scores of all pairs, width 768."""

    def make_loss(mesh):
        def loss(region_BxRxD, word_BxWxD, mask_BxW):
            return word_region_loss(region_BxRxD, word_BxWxD, mask_BxW, sweep=Sweep(schedule, mesh=mesh))

        return loss

    struct = jax.ShapeDtypeStruct
    shapes = struct((batch, regions, 768), HALF), struct((batch, words, 768), HALF), struct((batch, words), jnp.bool_)
    return _scratch(name, make_loss, shapes)


def _scratch(name: str, make_loss: Callable[[Any], Callable[..., jax.Array]], shapes: tuple[Any, ...]) -> str:
    slice_ = topology.describe(name)
    mesh = sharding.make_mesh(-1, 1, slice_.devices)
    place = sharding.batch_sharding(mesh)
    placed = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), shapes)
    step = jax.jit(jax.value_and_grad(make_loss(mesh), argnums=(0, 1)))
    compiled, refused = topology.compile_for_chip(step.lower(*placed), slice_, fast=False)
    if compiled is None:
        needed = re.search(r"([\d.]+)G\S* exceeds", refused)  # what it says of memory, in GiB
        return f"does not compile: {needed[1]} GiB" if needed else f"does not compile: {refused}"
    used = compiled.memory_analysis().temp_size_in_bytes / 2**20
    return f"{used:,.1f} MiB" if used < 100 else f"{used:,.0f} MiB"
