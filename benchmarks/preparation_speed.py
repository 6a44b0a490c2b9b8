"""Records per second of a build of `mimic_cxr`, beside preparations with the structure of the released ones.

    python benchmarks/preparation_speed.py

All sides read the same folder in the layout of MIMIC-CXR-JPG (`mimic_folder.py`), each in a new process on the same
cores, in turns; the whole command counts, start-up, table joins and side tables included. The others are one process
and written anew after the steps of public code:

  IMITATE  (cheliu-computation/IMITATE-TMI2024@cd1c575) sections of each report to a table; image decoded by Pillow,
           cropped to the box of its non-zero pixels, scaled by its range, resized bilinearly to a square as
           scikit-image does without anti-aliasing (`scipy.ndimage.zoom`), one .npy of all. (x 255 here: the factor 256
           of the original turns white to black.)
  MGCA     (HKU-MedAI/MGCA) the same table; image decoded by OpenCV, longest side to 256 by area, padded. MGCA repeats
           this at each access of training; here it is done once, into one .npy of all.

Neither stores labels, ids, checksums or splits by patient, checks whether a file is whole, nor shuffles records.
A build of a few images tells what start-up costs; "after start" is the rate between the two.

    python benchmarks/preparation_speed.py --processor --images 12

On a machine that is busy, seconds say little. This prints the least processor time of `--rounds` that an image takes:
the record of one worker, and the picture alone for the others, all in one process and in turns.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import gzip
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

FEW = 16


def released(side: str, folder: Path, out: Path) -> None:
    """One of the released preparations, from the folder to a table and an array."""
    import cv2
    import numpy as np

    from medvlp_jax.data.sections import parse_sections

    cv2.setNumThreads(1)
    out.mkdir(parents=True)
    with gzip.open(folder / "mimic-cxr-2.0.0-split.csv.gz", "rt") as file:
        split_of = {row["dicom_id"]: row["split"] for row in csv.DictReader(file)}
    rows, pictures = [], []
    with gzip.open(folder / "mimic-cxr-2.0.0-metadata.csv.gz", "rt") as file:
        for row in csv.DictReader(file):
            if row["ViewPosition"] not in ("PA", "AP"):
                continue
            tree = folder / f"files/p{row['subject_id'][:2]}/p{row['subject_id']}/s{row['study_id']}"
            text = tree.with_suffix(".txt").read_text()
            sections = {found.name: found.text for found in parse_sections(text, "mimic_official")}
            path = tree / f"{row['dicom_id']}.jpg"
            texts = [sections.get(name, "") or " " for name in ("findings", "impression")]
            rows.append([path, row["dicom_id"], row["subject_id"], row["study_id"], *texts, split_of[row["dicom_id"]]])
            pictures.append(_imitate(path) if side == "IMITATE" else _mgca(path))
    with open(out / "master.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    np.save(out / "images.npy", np.stack(pictures))


def _imitate(path):
    import numpy as np
    from PIL import Image
    from scipy import ndimage

    image = np.asarray(Image.open(path).convert("L"))
    rows, columns = np.nonzero(image.any(axis=1))[0], np.nonzero(image.any(axis=0))[0]
    box = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float64)
    scaled = (box - box.min()) / (box.max() - box.min()) * 255
    factors = [256 / length for length in scaled.shape]
    return ndimage.zoom(scaled, factors, order=1, mode="mirror", grid_mode=True).astype(np.uint8)


def _mgca(path):
    import cv2
    import numpy as np

    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    height, width = image.shape
    scale = 256 / max(height, width)
    new = max(1, int(height * scale)), max(1, int(width * scale))
    small = cv2.resize(image, new[::-1], interpolation=cv2.INTER_AREA)
    bars = [((256 - n) // 2, 256 - n - (256 - n) // 2) for n in new]
    return np.pad(small, bars)


def processor_times(folder: Path, rounds: int) -> None:
    """Prints milliseconds of processor time an image, and how many times as fast two workers would be."""
    import cv2

    from medvlp_jax.data import staging
    from tfds_builders.mimic_cxr import mimic_cxr

    cv2.setNumThreads(1)
    config = dataclasses.replace(mimic_cxr.CONFIG, root=str(folder))
    items = [item for of_split in mimic_cxr.plan(config).splits.values() for item in of_split]
    sides = {
        "ours": lambda: staging._make(items, mimic_cxr.make_examples, config),
        "IMITATE": lambda: [_imitate(item["path"]) for item in items],
        "MGCA": lambda: [_mgca(item["path"]) for item in items],
    }
    least = dict.fromkeys(sides, float("inf"))
    for _ in range(rounds):
        for side, work in sides.items():
            start = time.process_time()
            work()
            least[side] = min(least[side], 1000 * (time.process_time() - start) / len(items))
    for side, milliseconds in least.items():
        print(f"{side:8s} {milliseconds:6.1f} ms   two workers of ours: {2 * milliseconds / least['ours']:.1f} x")


def timed(command: list[str]) -> tuple[float, float]:
    """(wall seconds, processor seconds) of a command and all its children."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--height", type=int, default=2500)
    parser.add_argument("--width", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processor", action="store_true", help="compare processor time, in one process")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="of ours; the others are one")
    parser.add_argument("--side", choices=("IMITATE", "MGCA"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.side:
        released(flags.side, flags.folder, flags.out)
        return
    if flags.processor:
        from benchmarks import mimic_folder

        with tempfile.TemporaryDirectory() as temporary:
            mimic_folder.write(Path(temporary) / "mimic", flags.images, flags.height, flags.width)
            processor_times(Path(temporary) / "mimic", flags.rounds)
        return
    if flags.images <= FEW or flags.rounds < 1:
        parser.error(f"--images must be more than {FEW}, --rounds at least 1.")

    from benchmarks import mimic_folder

    with tempfile.TemporaryDirectory() as temporary:
        base, out = Path(temporary), Path(temporary) / "out"
        folders = {count: base / str(count) for count in (FEW, flags.images)}
        for count, folder in folders.items():
            size = mimic_folder.write(folder, count, flags.height, flags.width)
        print(
            f"{flags.images} JPEGs of {flags.height} x {flags.width} pixels, {size / 1e6:.2f} MB on average; "
            f"{len(os.sched_getaffinity(0))} cores, {flags.workers} workers"
        )

        def command(side: str, folder: Path) -> list[str]:
            if side == "ours":
                more = ["--root", str(folder), "--data_dir", str(out), "--workers", str(flags.workers)]
                return [sys.executable, "-m", "medvlp_jax.prepare", "mimic_cxr", *more]
            return [sys.executable, __file__, "--side", side, "--folder", str(folder), "--out", str(out)]

        seconds: dict[tuple[str, int], list[tuple[float, float]]] = {}
        for _ in range(flags.rounds):
            for side in ("ours", "IMITATE", "MGCA"):
                for count, folder in folders.items():
                    seconds.setdefault((side, count), []).append(timed(command(side, folder)))
                    shutil.rmtree(out)
    print(f"{'':8s} {'seconds':>8s} {'start':>6s} {'records/s':>10s} {'after start':>12s} {'CPU ms a record':>16s}")
    rates = {}
    for side in ("ours", "IMITATE", "MGCA"):
        (few, few_cpu), (all_, all_cpu) = (
            [statistics.median(column) for column in zip(*seconds[side, count], strict=True)] for count in folders
        )
        more = flags.images - FEW
        rates[side] = flags.images / all_, more / (all_ - few)
        start = few - FEW / rates[side][1]
        cpu = 1000 * (all_cpu - few_cpu) / more
        print(f"{side:8s} {all_:8.1f} {start:6.1f} {rates[side][0]:10.1f} {rates[side][1]:12.1f} {cpu:16.1f}")
    for side in ("IMITATE", "MGCA"):
        whole, later = (ours / theirs for ours, theirs in zip(rates["ours"], rates[side], strict=True))
        print(f"ours / {side}: {whole:.1f} x, {later:.1f} x after start")


if __name__ == "__main__":
    main()
