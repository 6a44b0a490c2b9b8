"""How many bits of the perceptual hash differ:  python benchmarks/near_duplicates.py FOLDER [--images 1000]

FOLDER holds grey images under `images/` and a `manifest.jsonl` with "image" and "patient_id". Prints the distances of
images of different patients, which must lie above the limit of the audit, and those of an image and what users do to
it, which should lie below.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from medvlp_jax.data.overlap import NEAR, perceptual_hash


def changed(image: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """What is done to an image on the way into a data set."""
    height, width = image.shape
    yield "JPEG, quality 50", cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 50])[1], 0)
    yield "half size", cv2.resize(image, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    yield "squashed to 224 x 224", cv2.resize(image, (224, 224), interpolation=cv2.INTER_AREA)
    yield "gamma 0.7", (255 * (image / 255.0) ** 0.7).astype(np.uint8)
    yield "histogram equalised", cv2.equalizeHist(image)
    yield "contrast x 1.3, clipped", np.clip(1.3 * (image.astype(float) - 30), 0, 255).astype(np.uint8)
    yield "padded by 10 %", cv2.copyMakeBorder(image, height // 10, height // 10, 0, 0, cv2.BORDER_CONSTANT, value=0)
    for percent in (2, 5):
        y, x = height * percent // 100, width * percent // 100
        yield f"{percent} % cut off each side", image[y : height - y, x : width - x]
    yield "mirrored", image[:, ::-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=1000)
    chosen = parser.parse_args()
    lines = (chosen.folder / "manifest.jsonl").read_text().splitlines()[: chosen.images]
    rows = [json.loads(line) for line in lines]
    images = [cv2.imread(str(chosen.folder / row["image"]), cv2.IMREAD_GRAYSCALE) for row in rows]
    patient_N = np.array([str(row["patient_id"]) for row in rows])
    hash_Nx4 = np.stack([perceptual_hash(image) for image in images])
    distance_NxN = np.bitwise_count(hash_Nx4[:, None] ^ hash_Nx4[None]).sum(-1)
    other = np.triu(patient_N[:, None] != patient_N[None], 1)
    apart = distance_NxN[other]
    print(f"{len(images)} images, {len(apart)} pairs of different patients: nearest {apart.min()} bits, ", end="")
    print(f"median {np.median(apart):g}; within {NEAR}: {(apart <= NEAR).sum()}")
    found: dict[str, list[int]] = {}
    for image, own in zip(images[::5], hash_Nx4[::5], strict=True):
        for name, other_image in changed(image):
            other_hash = perceptual_hash(np.ascontiguousarray(other_image))
            found.setdefault(name, []).append(int(np.bitwise_count(own ^ other_hash).sum()))
    print(f"{'same image':<28}{'median':>8}{'most':>8}{f'within {NEAR}':>12}")
    for name, distances in found.items():
        share = np.mean(np.array(distances) <= NEAR)
        print(f"{name:<28}{np.median(distances):>8g}{max(distances):>8}{f'{100 * share:.1f} %':>12}")


if __name__ == "__main__":
    main()
