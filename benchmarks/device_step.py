"""Images per second of the full recipe's training step on the devices that JAX finds.

    python -m benchmarks.device_step --batch_size 256

IMITATE as `configs/imitate.py` trains it (ResNet-50, 224 px, two views, bfloat16, text vectors from the cache), random
data and weights, whole batch on the mesh of all devices; no reading of data. Prints the device, the compile time, the
median step and the peak of device memory where the platform tells it.
"""

import argparse
import statistics
import time

import jax

from benchmarks.step_speed import our_step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--rounds", type=int, default=20, help="timed steps")
    flags = parser.parse_args()
    start = time.perf_counter()
    step = our_step("cached", flags.batch_size, flags.image_size, 256, flags.dtype, clip_norm=1.0)
    step()
    print(f"{jax.device_count()} x {jax.devices()[0].device_kind}, first step {time.perf_counter() - start:.0f} s")
    seconds = []
    for _ in range(flags.rounds):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds)
    print(f"batch {flags.batch_size}: {1e3 * median:.1f} ms/step, {flags.batch_size / median:.0f} images/s")
    memory = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in memory:
        print(f"peak of device memory {memory['peak_bytes_in_use'] / 2**30:.1f} GiB")


if __name__ == "__main__":
    main()
