"""Pairwise losses by schedule: equality with float64, memory on TPU slices that are not there, speed on CPU.

    python benchmarks/pairwise.py equality   # every schedule, kind, target, mask and mesh; several minutes
    python benchmarks/pairwise.py memory     # needs the extra tpu; about ten minutes on two cores
    python benchmarks/pairwise.py speed      # needs the extra torch for the peer

Memory is what the TPU compiler needs for the loss and its gradients besides their arguments and results ("scratch"),
at default effort: bfloat16 embeddings of width 512, IMITATE's soft targets from report vectors of width 512 in
bfloat16. Small figures mean that tiles stayed in on-chip memory. Speed is one step of loss and gradients, float32,
sides in turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import turns

ROOT = Path(__file__).resolve().parents[1]
# topology, global batch, schedule, chunk
MEMORY = (
    ("v5e:4x4", 4096, "dense", 2048),
    ("v5e:4x4", 32768, "dense", 2048),
    ("v5e:4x4", 32768, "chunked", 2048),
    ("v5e:4x4", 32768, "ring", 2048),
    ("v5e:4x4", 131072, "chunked", 2048),
    ("v5e:4x4", 131072, "ring", 512),
    ("v5e:16x16", 131072, "ring", 2048),
)
FLAT = ("v5e:4x4", "v5e:8x8", "v5e:16x16", "v4:8x8x8", "v4:8x8x16", "v4:8x16x16")  # 16 to 2,048 chips, 512 each
LOCAL = (("v5e:4x4", 512, 196, 64), ("v5e:4x4", 2048, 196, 64), ("v5e:4x4", 1024, 361, 97))


def equality() -> None:
    """Runs the cases of the tests on all meshes; prints the worst errors of value and gradients."""
    devices = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=1"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": devices}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "losses")])
    subprocess.run([sys.executable, ROOT / "tests" / "losses" / "cases.py", "--all"], env=environment, check=True)


def memory() -> None:
    """Compiles losses for slices that are not there."""
    from medvlp_jax.plan import topology

    topology.prepare_environment()
    import jax
    import jax.numpy as jnp

    from medvlp_jax import sharding
    from medvlp_jax.losses.clinical_prior import prior_targets
    from medvlp_jax.losses.contrastive import contrastive
    from medvlp_jax.losses.schedules import Sweep
    from medvlp_jax.losses.word_region import word_region_loss

    half = jnp.bfloat16

    def scratch(name, make_loss, shapes):
        slice_ = topology.describe(name)
        mesh = sharding.make_mesh(-1, 1, slice_.devices)
        placed = jax.tree.map(
            lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding.batch_sharding(mesh)), shapes
        )
        start = time.perf_counter()
        step = jax.jit(jax.value_and_grad(make_loss(mesh), argnums=(0, 1)))
        compiled, refused = topology.compile_for_chip(step.lower(*placed), slice_, fast=False)
        if compiled is None:
            return f"does not compile: {refused}"
        used = compiled.memory_analysis().temp_size_in_bytes / 2**20
        return f"{used:8.1f} MiB   (compiled in {time.perf_counter() - start:.0f} s)"

    def soft(schedule, chunk):
        def make_loss(mesh):
            sweep = Sweep(schedule, chunk, mesh)

            def loss(x_BxD, y_BxD, report_BxE):
                rule = {"temperature": 0.07, "mass": "batch_invariant", "dtype": half, "sweep": sweep}
                targets = prior_targets(report_BxE, **rule)
                return contrastive(x_BxD, y_BxD, temperature=0.07, targets=targets, dtype=half, sweep=sweep)

            return loss

        return make_loss

    def local(schedule):
        def make_loss(mesh):
            def loss(region_BxRxD, word_BxWxD, mask_BxW):
                return word_region_loss(region_BxRxD, word_BxWxD, mask_BxW, sweep=Sweep(schedule, mesh=mesh))

            return loss

        return make_loss

    batch = lambda *shape, dtype=half: jax.ShapeDtypeStruct(shape, dtype)  # noqa: E731
    print("scratch of loss and gradients, soft targets")
    for name, size, schedule, chunk in MEMORY:
        used = scratch(name, soft(schedule, chunk), (batch(size, 512),) * 3)
        print(f"{name:12s} batch {size:7d} {schedule:8s} chunk {chunk:5d} {used}", flush=True)
    print("ring at 512 examples per chip, by number of chips")
    for name in FLAT:
        size = 512 * len(topology.describe(name).devices)
        print(f"{name:12s} batch {size:7d} {scratch(name, soft('ring', 2048), (batch(size, 512),) * 3)}", flush=True)
    print("word-region scores, width 768, loss and gradients")
    for name, size, regions, words in LOCAL:
        for schedule in ("dense", "chunked"):
            shapes = batch(size, regions, 768), batch(size, words, 768), batch(size, words, dtype=jnp.bool_)
            used = scratch(name, local(schedule), shapes)
            print(f"{name:12s} batch {size:5d} {regions} x {words} {schedule:8s} {used}", flush=True)


def speed(rounds: int) -> None:
    """Times schedules on eight simulated devices against dense, then dense on one device against PyTorch."""
    for sides in (("dense", "chunked", "ring"), ("torch", "softmax")):
        commands = {side: [sys.executable, __file__, "worker", "--side", side] for side in sides}
        seconds = turns.in_turns(commands, rounds)
        first = statistics.median(seconds[sides[0]])
        for side, values in seconds.items():
            median = statistics.median(values)
            print(f"{side:8s} {1e3 * median:8.1f} ms   {median / first:5.2f} x {sides[0]}", flush=True)


def worker(side: str) -> None:
    """Serves steps of loss and gradients: batch 4,096, width 512, float32, hard targets."""
    sys.path.insert(0, str(ROOT))
    simulated = 8 if side in ("dense", "chunked", "ring") else 1
    os.environ.update(JAX_PLATFORMS="cpu", XLA_FLAGS=f"--xla_force_host_platform_device_count={simulated}")
    import numpy as np

    x, y = np.random.default_rng(0).normal(size=(2, 4096, 512)).astype(np.float32)
    if side == "torch":
        import torch
        from torch.nn.functional import cross_entropy, normalize

        torch.set_num_threads(len(os.sched_getaffinity(0)))
        image, text = (torch.from_numpy(z).requires_grad_() for z in (x, y))
        label = torch.arange(4096)

        def step():  # what open_clip's ClipLoss computes on one device
            image.grad = text.grad = None
            a, b = normalize(image, dim=-1), normalize(text, dim=-1)
            scores = a @ b.T / 0.07
            loss = (cross_entropy(scores, label) + cross_entropy((b @ a.T) / 0.07, label)) / 2
            loss.backward()
    else:
        import jax

        from medvlp_jax import sharding
        from medvlp_jax.losses.contrastive import contrastive
        from medvlp_jax.losses.schedules import Sweep

        mesh = sharding.make_mesh(-1, 1)
        sweep = Sweep("dense" if side == "softmax" else side, 2048, mesh)

        def loss(x, y):
            return contrastive(x, y, temperature=0.07, directions=(0.5, 0.5), sweep=sweep)

        place = sharding.batch_sharding(mesh)
        compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)), out_shardings=(None, (place, place)))
        batch = jax.device_put((x, y), place)

        def step():
            jax.block_until_ready(compiled(*batch))

    turns.serve(step)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("equality", "memory", "speed", "worker"))
    parser.add_argument("--rounds", type=int, default=7, help="timed steps of each side (speed)")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    if flags.what == "worker":
        worker(flags.side)
    elif flags.what == "speed":
        speed(flags.rounds)
    else:
        {"equality": equality, "memory": memory}[flags.what]()


if __name__ == "__main__":
    main()
