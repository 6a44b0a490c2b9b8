"""A folder in the layout of MIMIC-CXR-JPG for measurements: rendered pictures, a phantom's reports, distinct ids.

    python benchmarks/mimic_folder.py --folder /tmp/mimic --images 400 --height 2500 --width 2000

A few pictures are drawn, with the noise of a film, so that a JPEG has about the bytes of one of MIMIC-CXR-JPG (1.5 MB
on average); every image file is a hard link to one of them, every report to one of a few.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from medvlp_jax.data import images
from medvlp_jax.data.labels import CHEXPERT_LABELS
from tfds_builders.cxr_phantom.anatomy import stream
from tfds_builders.cxr_phantom.picture import render
from tfds_builders.cxr_phantom.report import write_report
from tfds_builders.cxr_phantom.study import patient_body, sample_study
from tfds_builders.mimic_cxr.make_dummy_data import HEAD, METADATA
from tfds_builders.testing import write_csv

TEXTS = 64
MOST_LINKS = 60_000  # ext4 allows 65,000 of a file


def picture(number: int, height: int, width: int, noise: float = 3.0) -> bytes:
    """JPEG (quality 95) of phantom `number`, with noise of `noise` grey levels."""
    study = sample_study(0, number, 0)
    film = render(patient_body(0, number), study.pose(0, 0), study.findings, min(2048, max(64, height, width))).film
    film = cv2.resize(film, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.float32)
    film += np.random.default_rng(number).normal(0, noise, film.shape).astype(np.float32)
    return images.encode_jpeg(np.clip(film, 0, 255).astype(np.uint8))


def text(number: int) -> str:
    """The report of phantom `number` as MIMIC-CXR writes one."""
    report = write_report(stream(0, number, 1, 0, 2), sample_study(0, number, 0), patient_body(0, number))
    sections = (("FINDINGS", report.findings_text), ("IMPRESSION", report.impression_text))
    return HEAD + "".join(f" {name}:  {words}\n \n" for name, words in sections if words)


def ids(count: int) -> Iterator[tuple[str, str, str, str]]:
    """(subject, study, dicom id, split) of `count` images: two studies a patient, one image a study."""
    digits = np.random.default_rng(0).integers(0, 2**32, (count, 5), dtype=np.uint64)
    for number in range(count):
        patient = number // 2
        split = {0: "validate", 1: "test"}.get(patient % 100, "train")
        name = "-".join(f"{int(part):08x}" for part in digits[number])
        yield str(10_000_000 + patient * 9), str(50_000_000 + number), name, split


def write(folder: Path, count: int, height: int, width: int, distinct: int = 16) -> float:
    """Writes the folder. Returns: mean bytes of an image file."""
    pictures, texts, metadata, splits, labels = folder / "drawn", folder / "texts", [], [], []
    pictures.mkdir(parents=True)
    texts.mkdir()
    distinct = min(count, max(distinct, -(-count // MOST_LINKS)))
    sizes = [(pictures / f"{n}.jpg").write_bytes(picture(n, height, width)) for n in range(distinct)]
    for n in range(TEXTS):
        (texts / f"{n}.txt").write_text(text(n), encoding="utf-8")
    for number, (subject, study, name, split) in enumerate(ids(count)):
        patient = f"{folder}/files/p{subject[:2]}/p{subject}"
        os.makedirs(f"{patient}/s{study}")
        os.link(pictures / f"{number % distinct}.jpg", f"{patient}/s{study}/{name}.jpg")
        os.link(texts / f"{number % TEXTS}.txt", f"{patient}/s{study}.txt")
        rest = ["CHEST (PA AND LAT)", "PA", height, width, "21800506", "213014.5", "", "", ""]
        metadata.append([name, subject, study, *rest])
        splits.append([name, study, subject, split])
        labels.append([subject, study, *("1.0" if n == number % 14 else "" for n in range(14))])
    write_csv(folder / "mimic-cxr-2.0.0-metadata.csv.gz", METADATA, metadata)
    write_csv(folder / "mimic-cxr-2.0.0-split.csv.gz", ("dicom_id", "study_id", "subject_id", "split"), splits)
    write_csv(folder / "mimic-cxr-2.0.0-chexpert.csv.gz", ("subject_id", "study_id", *sorted(CHEXPERT_LABELS)), labels)
    return sum(sizes) / len(sizes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="a new folder")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--height", type=int, default=2500)
    parser.add_argument("--width", type=int, default=2000)
    parser.add_argument("--distinct", type=int, default=16, help="pictures that are drawn")
    flags = parser.parse_args()
    if flags.folder.exists():
        parser.error(f"--folder {flags.folder} is there already.")
    size = write(flags.folder, flags.images, flags.height, flags.width, flags.distinct)
    print(f"{flags.images} images of {size / 1e6:.2f} MB, {flags.height} x {flags.width} pixels: {flags.folder}")


if __name__ == "__main__":
    main()
