"""Losses over all pairs by schedule: equality with float64, and speed on CPU; the tables are those of `scaling.py`.

    python benchmarks/pairwise.py --side ring     # serves steps of one side, for `turns.py`

A step is loss and gradients, batch 4,096, width 512, float32, hard targets.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

try:
    from benchmarks import turns
except ImportError:  # started as a file
    import turns

ROOT = Path(__file__).resolve().parents[1]
EIGHT_DEVICES = ("dense", "chunked", "ring")  # sides that simulate eight devices; the others run on one


def equality() -> dict[str, tuple[float, float]]:
    """Runs the cases of the tests on all meshes. Returns: schedule -> worst relative error of loss, of gradients."""
    devices = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=1"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": devices}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "losses")])
    command = [sys.executable, ROOT / "tests" / "losses" / "cases.py", "--all"]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    worst: dict[str, tuple[float, float]] = {}
    for key, errors in json.loads(done.stdout.splitlines()[-1]).items():
        schedule = key.split()[0]
        worst[schedule] = tuple(map(max, zip(worst.get(schedule, (0.0, 0.0)), errors, strict=True)))
    return worst


def speed(sides: Sequence[str], rounds: int) -> dict[str, float]:
    """Seconds of a step by side, medians of `rounds` steps taken in turns. `torch` needs the extra of that name."""
    commands = {side: [sys.executable, __file__, "--side", side] for side in sides}
    return {side: statistics.median(values) for side, values in turns.in_turns(commands, rounds).items()}


def worker(side: str) -> None:
    """Serves steps of one side."""
    sys.path.insert(0, str(ROOT))
    simulated = 8 if side in EIGHT_DEVICES else 1
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
    parser.add_argument("--side", required=True, choices=(*EIGHT_DEVICES, "softmax", "torch"))
    worker(parser.parse_args().side)


if __name__ == "__main__":
    main()
