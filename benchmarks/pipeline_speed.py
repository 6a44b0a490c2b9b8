"""Views per second of the training pipeline beside a Pillow pipeline with the structure of the released IMITATE.

    python benchmarks/pipeline_speed.py

Both read the same 256 px grey JPEG records, make two augmented 224 px views of each, and put batches on the device:
crop 224 of 256, flips, rotation up to 30 degrees, perspective (distortion 0.5, p 0.5), autocontrast p 0.5. Ours is
`data.pipeline` with uint8 batches, normalised later inside the training step; the other decodes and converts to RGB for
every view, does one step after another (nearest rotation, bicubic perspective), and normalises to float32. Its steps
and their order come from cheliu-computation/IMITATE-TMI2024@cd1c575, where torchvision 0.14 carries them out with
Pillow; they are written anew here.

`ours, kept` finds the decoded images in memory, as from the second epoch on with `data.memory_mib`.
`OpenCV alone` is a bound: one decoding and two perspective warps per record, matrices made beforehand, nothing else.

Each runs with n threads on n cores, in turns, and the median round counts. Processor time is printed beside wall time
because it hardly changes when something else runs on the machine. Takes about a minute.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import jax
import numpy as np
from PIL import Image, ImageOps

from medvlp_jax.data import pipeline, preprocess, transforms

AUGMENT = (
    "decode|views(2, size=224, crop_from=256, hflip=0.5, vflip=0.5, rotate=30, perspective=0.5, autocontrast=0.5{more})"
    "|keep('image')"
)
MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])


def make_records(count: int, quality: int = 90) -> list[dict[str, bytes]]:
    """Smooth 256 px pictures with fine noise; as JPEG about as large as radiographs of that size."""
    rng = np.random.default_rng(0)
    records = []
    for _ in range(count):
        coarse = cv2.resize(rng.normal(0, 1, (8, 8)), (256, 256), interpolation=cv2.INTER_CUBIC)
        fine = cv2.GaussianBlur(rng.normal(0, 1, (256, 256)), (0, 0), 1.5)
        image = np.clip(120 + 45 * coarse + 25 * fine, 0, 255).astype(np.uint8)
        records.append({"image": cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()})
    return records


def decoded(records: list[dict[str, bytes]]) -> list[dict[str, np.ndarray]]:
    """The records as `data.kept` keeps them."""
    images = [preprocess.decode_grey(record["image"]) for record in records]
    for image in images:
        image.flags.writeable = False
    return [{"image": image} for image in images]


def our_batches(records: list[dict[str, Any]], batch_size: int, threads: int, more: str) -> Iterator[jax.Array]:
    preprocess_fn = preprocess.build(AUGMENT.format(more=more))
    batches = pipeline.train_batches(records, preprocess_fn, batch_size=batch_size, seed=0, num_threads=threads)
    with pipeline.device_prefetch(batches, jax.sharding.SingleDeviceSharding(jax.devices()[0])) as arrays:
        for batch in arrays:
            yield batch["image"]


def opencv_batches(records: list[dict[str, bytes]], batch_size: int, threads: int) -> Iterator[np.ndarray]:
    spec = transforms.ViewSpec(size=224, crop_from=256, hflip=0.5, vflip=0.5, rotate=30, perspective=0.5)
    rng = np.random.default_rng(0)
    matrices = [transforms.draw_geometry(spec, transforms.draw(rng), 256, 256).matrix for _ in range(256)]
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    data = [np.frombuffer(record["image"], np.uint8) for record in records]

    def some(start: int) -> None:
        for i in range(start, start + batch_size // threads):
            image = cv2.imdecode(data[i % len(data)], cv2.IMREAD_GRAYSCALE)
            for view in range(2):
                cv2.warpPerspective(image, matrices[(2 * i + view) % len(matrices)], (224, 224), flags=flags)

    cv2.setNumThreads(1)
    done = np.zeros(1)
    with ThreadPoolExecutor(threads) as pool:
        while True:
            list(pool.map(some, range(0, batch_size, batch_size // threads)))
            yield done


def pillow_batches(records: list[dict[str, bytes]], batch_size: int, threads: int) -> Iterator[jax.Array]:
    def example(i: int) -> np.ndarray:
        rng = np.random.default_rng(i)
        data = records[i % len(records)]["image"]
        return np.stack([pillow_view(data, rng), pillow_view(data, rng)])

    with ThreadPoolExecutor(threads) as pool:
        waiting = deque(pool.submit(example, i) for i in range(2 * batch_size))
        submitted = len(waiting)
        try:
            while True:
                examples = []
                for _ in range(batch_size):
                    examples.append(waiting.popleft().result())
                    waiting.append(pool.submit(example, submitted))
                    submitted += 1
                yield jax.device_put(np.stack(examples))
        finally:
            for future in waiting:
                future.cancel()


def pillow_view(data: bytes, rng: np.random.Generator) -> np.ndarray:
    """float32 [3, 224, 224], step by step."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    left, top = rng.integers(0, 256 - 224 + 1, 2)
    image = image.crop((left, top, left + 224, top + 224))
    if rng.random() < 0.5:
        image = Image.merge("RGB", [image.convert("L")] * 3)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    image = image.rotate(rng.uniform(-30, 30), Image.Resampling.NEAREST)
    if rng.random() < 0.5:
        last, reach = 223, int(0.5 * 112)
        x, y = rng.integers(0, reach + 1, (2, 4))
        moved = [(x[0], y[0]), (last - x[1], y[1]), (last - x[2], last - y[2]), (x[3], last - y[3])]
        corners = [(0, 0), (last, 0), (last, last), (0, last)]
        image = image.transform(
            (224, 224), Image.Transform.PERSPECTIVE, coefficients(corners, moved), Image.Resampling.BICUBIC
        )
    if rng.random() < 0.5:
        image = ImageOps.autocontrast(image)
    pixels = np.asarray(image, np.float32).transpose(2, 0, 1) / 255
    return (np.ascontiguousarray(pixels) - MEAN[:, None, None]) / STD[:, None, None]


def coefficients(corners: list[tuple[int, int]], moved: list[tuple[int, int]]) -> list[float]:
    """Pillow's eight perspective numbers, which map `moved` to `corners`."""
    rows = []
    for (x, y), (u, v) in zip(moved, corners, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
    return np.linalg.lstsq(np.array(rows, float), np.array(corners, float).ravel(), rcond=None)[0].tolist()


def views_per_second(batches: Iterator[jax.Array], batch_size: int, seconds: float) -> tuple[float, float]:
    """Views per second and per second of processor time, measured between batch ends after the queues have filled."""
    try:
        for _ in range(3):
            jax.block_until_ready(next(batches))
        start, cpu_start, count = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - start < seconds:
            jax.block_until_ready(next(batches))
            count += 1
        views = 2 * batch_size * count
        return views / (time.perf_counter() - start), views / (time.process_time() - cpu_start)
    finally:
        batches.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=1.5, help="of one round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=32)
    arguments = parser.parse_args()
    records = make_records(256)
    kept = decoded(records)
    size = statistics.mean(len(record["image"]) for record in records)
    cores = sorted(os.sched_getaffinity(0))
    print(f"{len(records)} records of {size / 1000:.1f} kB, batch {arguments.batch_size}, {len(cores)} cores")
    runs = {
        "ours, bilinear": lambda n: our_batches(records, arguments.batch_size, n, ""),
        "ours, bicubic": lambda n: our_batches(records, arguments.batch_size, n, ", interpolation='bicubic'"),
        "ours, kept": lambda n: our_batches(kept, arguments.batch_size, n, ""),
        "OpenCV alone": lambda n: opencv_batches(records, arguments.batch_size, n),
        "Pillow": lambda n: pillow_batches(records, arguments.batch_size, n),
    }
    for threads in arguments.threads:
        if threads > len(cores):
            print(f"{threads} threads: skipped, there are only {len(cores)} cores")
            continue
        os.sched_setaffinity(0, cores[:threads])  # threads started from here on inherit it
        rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
        for _ in range(arguments.rounds):
            for name, batches in runs.items():
                rounds[name].append(views_per_second(batches(threads), arguments.batch_size, arguments.seconds))
        medians = {name: [statistics.median(column) for column in zip(*values)] for name, values in rounds.items()}  # noqa: B905
        for name, (wall, cpu) in medians.items():
            wall_ratio, cpu_ratio = wall / medians["Pillow"][0], cpu / medians["Pillow"][1]
            print(
                f"{threads} threads  {name:15s} {wall:6.0f} views/s ({wall_ratio:4.1f} x Pillow)   "
                f"{cpu:6.0f} views per core-second ({cpu_ratio:4.1f} x Pillow)",
                flush=True,
            )
        os.sched_setaffinity(0, cores)


if __name__ == "__main__":
    main()
