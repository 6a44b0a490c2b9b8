"""Images per second from prepared records: read at random, decoded, in batches.

    python benchmarks/reading_speed.py [--threads 1 2]
    python benchmarks/reading_speed.py --data_dir data --name mimic_cxr

Without --name, `mimic_cxr` is first built from drawn films (`mimic_folder.py`) at 256 pixels, as JPEG and as PNG.
Printed are, for each, records read without decoding, read and decoded to uint8, and batches of 256 of what training
gets before it augments (`data.pipeline`, a new order every epoch); in brackets the same for each second of processor
time, which hardly changes when something else runs on the machine. Everything lies in the page cache: a first epoch
from a slow disk is bounded by the bytes a record, which are printed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import mimic_folder  # noqa: E402
from medvlp_jax.data import pipeline, preprocess  # noqa: E402
from medvlp_jax.data.records import RecordSource  # noqa: E402

BATCH = 256


Rates = tuple[float, float]
"""A second, and a second of processor time."""


def in_threads(source: RecordSource, each: Callable[[dict], object], threads: int, seconds: float) -> Rates:
    """Records that so many threads read at random and give to `each`."""
    until = time.perf_counter() + seconds

    def work(seed: int) -> int:
        order, count = np.random.default_rng(seed).permutation(len(source)), 0
        while time.perf_counter() < until:
            each(source[order[count % len(order)]])
            count += 1
        return count

    start, used = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(threads) as pool:
        count = sum(pool.map(work, range(threads)))
    return count / (time.perf_counter() - start), count / (time.process_time() - used)


def in_batches(source: RecordSource, threads: int, seconds: float) -> Rates:
    """Images of the training pipeline, decoded, not augmented."""
    make = preprocess.build("decode|center(256)|keep('image')")
    batches = pipeline.train_batches(source, make, batch_size=BATCH, seed=0, num_threads=threads)
    try:
        next(batches)
        start, used, count = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - start < seconds:
            count += len(next(batches)["image"])
        return count / (time.perf_counter() - start), count / (time.process_time() - used)
    finally:
        batches.close()


def report(data_dir: str, name: str, threads: list[int], seconds: float, rounds: int) -> None:
    source = RecordSource(data_dir, name, "train")
    size = statistics.mean(len(source[i]["image"]) for i in range(min(len(source), 500)))
    shape = preprocess.decode_grey(source[0]["image"]).shape
    print(f"{name}: {len(source)} records, {shape[0]} x {shape[1]} pixels, {size / 1000:.1f} kB an image")
    for count in threads:
        found: dict[str, list[Rates]] = {}
        for _ in range(rounds):
            read = in_threads(source, lambda record: None, count, seconds)
            decoded = in_threads(source, lambda record: preprocess.decode_grey(record["image"]), count, seconds)
            for what, rate in (("read", read), ("decoded", decoded), ("batches", in_batches(source, count, seconds))):
                found.setdefault(what, []).append(rate)
        medians = {what: [statistics.median(of) for of in zip(*rates, strict=True)] for what, rates in found.items()}
        rates = ", ".join(f"{what} {wall:,.0f} ({cpu:,.0f})" for what, (wall, cpu) in medians.items())
        print(f"  {count} threads, images/s: {rates}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", help="with --name: root of a prepared data set")
    parser.add_argument("--name", help="a prepared data set, or data set/config")
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, len(os.sched_getaffinity(0))}))
    parser.add_argument("--images", type=int, default=600, help="of the set that is built")
    parser.add_argument("--seconds", type=float, default=3.0, help="of one measurement")
    parser.add_argument("--rounds", type=int, default=3)
    flags = parser.parse_args()
    if bool(flags.name) != bool(flags.data_dir):
        parser.error("--data_dir and --name go together.")
    if flags.name:
        report(flags.data_dir, flags.name, flags.threads, flags.seconds, flags.rounds)
        return
    with tempfile.TemporaryDirectory() as temporary:
        mimic_folder.write(Path(temporary) / "mimic", flags.images, 1280, 1024, distinct=16)
        for encoding in ("jpeg", "png"):
            command = [sys.executable, "-m", "medvlp_jax.prepare", "mimic_cxr", "--root", f"{temporary}/mimic"]
            command += ["--data_dir", temporary, "--name", encoding, "--encoding", encoding]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": str(ROOT)})
            report(temporary, f"mimic_cxr/{encoding}", flags.threads, flags.seconds, flags.rounds)


if __name__ == "__main__":
    main()
