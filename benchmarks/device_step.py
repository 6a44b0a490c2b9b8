"""Milliseconds and images per second of the full recipes' training steps on the devices that JAX finds.

    python -m benchmarks.device_step                                              # IMITATE
    python -m benchmarks.device_step --configs clip,gloria,lovt --batch_size 256

Every config as it trains on MIMIC-CXR, with random data and weights and the whole batch on the mesh of all devices:
cached text vectors where its text tower is frozen, else texts as long as the config allows; no reading of data. Steps
compile side by side and are timed one config after the other, waiting for each step. Prints the device, and of every
config the median step and the peak of device memory so far, where the platform tells it; `--json` also writes them.
"""

import argparse
import importlib
import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medvlp_jax import sharding
from medvlp_jax.plan import costs

PIECES = {"words": 1.3, "sentences": 16.0}  # of a unit of text, on average


def random_batch(structs: dict[str, jax.ShapeDtypeStruct], units: str) -> dict[str, np.ndarray]:
    """A batch of these shapes: noise for images and vectors, full-length texts, all of them different."""
    rng, batch = np.random.default_rng(0), {}
    for name, struct in structs.items():
        shape = struct.shape
        if name.endswith("_hash"):
            x = np.arange(shape[0])
        elif name.endswith("_segment"):
            x = np.broadcast_to(np.arange(shape[1]) // PIECES[units], shape)
        elif name.endswith("_ids"):
            x = rng.integers(1000, 28000, shape)
        elif struct.dtype == np.bool_:
            x = np.ones(shape)
        else:
            x = rng.integers(0, 256, shape) if name == "image" else rng.normal(size=shape)
        batch[name] = x.astype(struct.dtype)
    return batch


def recipe(name: str, flags: argparse.Namespace) -> Any:
    """A full recipe in the sizes asked for; 0 and "" keep its own."""
    with importlib.import_module(f"configs.{name}").get_config().unlocked() as config:
        config.batch_size = flags.batch_size or config.batch_size
        config.image.size = flags.image_size or config.image.size
        if flags.dtype:
            config.model.dtype = config.text.dtype = flags.dtype
    return config


def time_steps(
    step: jax.stages.Compiled, lowered: costs.Lowered, batch: dict[str, np.ndarray], mesh: Any, rounds: int
) -> list[float]:
    """Seconds of so many steps, behind two untimed ones. Raises: FloatingPointError where the loss ends as NaN."""
    state = lowered.make_state()
    frozen = jax.jit(lambda: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), lowered.frozen))()
    arrays, seconds = jax.device_put(batch, sharding.batch_sharding(mesh)), []
    for _ in range(rounds + 2):
        start = time.perf_counter()
        state, metrics = step(state, frozen, arrays)
        loss = float(metrics["loss"])
        seconds.append(time.perf_counter() - start)
    if not np.isfinite(loss):
        raise FloatingPointError(f"The loss of the last step is {loss}.")
    return seconds[2:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", default="imitate", help="names of configs/, divided by commas")
    parser.add_argument("--batch_size", type=int, default=256, help="0: that of each recipe")
    parser.add_argument("--image_size", type=int, default=0)
    parser.add_argument("--dtype", default="", choices=("", "bfloat16", "float32"), help="of all towers")
    parser.add_argument("--rounds", type=int, default=20, help="timed steps")
    parser.add_argument("--json", type=Path, help="write what was measured here")
    flags = parser.parse_args()
    mesh, found = sharding.make_mesh(), []
    print(f"{jax.device_count()} x {jax.devices()[0].device_kind}, jax {jax.__version__}", flush=True)

    def compiled(name: str) -> tuple[str, Any, costs.Lowered, jax.stages.Compiled, float]:
        start, config = time.perf_counter(), recipe(name, flags)
        lowered = costs.lower_step(config, mesh, text_width=768, examples=217_000)
        return name, config, lowered, lowered.step.compile(), time.perf_counter() - start

    with ThreadPoolExecutor() as pool:
        ready = list(pool.map(compiled, flags.configs.split(",")))
    for name, config, lowered, step, compile_seconds in ready:
        batch = random_batch(lowered.batch, config.text.units)
        median = statistics.median(time_steps(step, lowered, batch, mesh, flags.rounds))
        size, views = config.batch_size, config.image.views
        memory = step.memory_analysis()
        row = {
            "config": name,
            "batch_size": size,
            "compile_seconds": round(compile_seconds, 1),
            "ms_per_step": round(1e3 * median, 2),
            "images_per_second": round(size / median, 1),
            "views_per_second": round(size * views / median, 1),
            "step_gib": round((memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 2**30, 2),
            "peak_gib": round((jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0) / 2**30, 2),
        }
        found.append(row)
        print(
            f"{name:20} batch {size} x {views}: {row['ms_per_step']} ms/step, {row['images_per_second']} images/s, "
            f"{row['step_gib']} GiB by the compiler, peak so far {row['peak_gib']} GiB, compiled in "
            f"{compile_seconds:.0f} s",
            flush=True,
        )
    if flags.json:
        flags.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
