"""How often the rule for burnt-in letters hits, and what it does to lungs:

    python -m benchmarks.burned_in [--images 500] [--size 256 512] [--lungs FOLDER] [--show FILE]

Phantoms have one letter each, at a known place, and lung masks. Texts of one to twelve characters, drawn on phantoms
at the border, stand for what a machine writes. FOLDER holds real images with `manifest.jsonl` ("image", "mask": the
lungs), on which nothing is known of letters, but every lung pixel that changes is one too many.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2
import numpy as np

from medvlp_jax.data import burned_in
from tfds_builders.cxr_phantom.anatomy import Pose
from tfds_builders.cxr_phantom.chest import marker
from tfds_builders.cxr_phantom.picture import render
from tfds_builders.cxr_phantom.study import patient_body, sample_study

FONTS = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_PLAIN)


def marker_gone(film: np.ndarray, out: np.ndarray, pose: Pose) -> bool:
    """Whether 95 % of the pixels of a phantom's letter were painted over."""
    (top, left, bottom, right), letter = marker(pose, film.shape[0])
    return bool((film != out)[top:bottom, left:right][letter > 127].mean() >= 0.95)


def with_text(film: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A line of white text near a corner: the film, and where the text is."""
    size = film.shape[0]
    text = "".join(rng.choice(list("ABCDEFGHKLMNPRSTUVXYZ0123456789"), rng.integers(1, 13)))
    height = max(9, int(size * rng.uniform(0.02, 0.035)))
    font = FONTS[rng.integers(len(FONTS))]
    scale = height / cv2.getTextSize("H", font, 1.0, 1)[0][1]
    (width, _), _ = cv2.getTextSize(text, font, scale, 1)
    x = int(0.03 * size) if rng.random() < 0.5 else size - width - int(0.03 * size)
    y = int(0.04 * size) + height if rng.random() < 0.5 else size - int(0.04 * size)
    plane = np.zeros_like(film)
    cv2.putText(plane, text, (max(2, x), y), font, scale, 255, max(1, height // 9), cv2.LINE_AA)
    return np.maximum(film, plane), plane > 127


def phantoms(count: int, size: int, show: list[np.ndarray]) -> str:
    """A row of the table for phantoms of a size."""
    gone_markers, touched, changed, lungs, glyphs, gone = 0, 0, 0, 0, 0, 0
    for patient in range(count):
        body, study = patient_body(0, patient), sample_study(0, patient, 0)
        pose = study.pose(0, 0)
        picture = render(body, pose, study.findings, size)
        out, _ = burned_in.blank(picture.film)
        gone_markers += marker_gone(picture.film, out, pose)
        differs = (out != picture.film) & (picture.lungs > 0)
        changed, lungs, touched = changed + differs.sum(), lungs + (picture.lungs > 0).sum(), touched + differs.any()
        text, where = with_text(picture.film, np.random.default_rng([size, patient]))
        cleaned, _ = burned_in.blank(text)
        glyphs, gone = glyphs + where.sum(), gone + (where & (cleaned != text)).sum()
        if len(show) < 12:
            show.append(cv2.resize(np.hstack([text, cleaned]), (512, 256), interpolation=cv2.INTER_AREA))
    return (
        f"{f'phantoms, {size} pixels':<28}{count:>7}{gone_markers / count:>12.1%}{gone / glyphs:>12.1%}"
        f"{touched / count:>12.1%}{changed / lungs:>12.4%}"
    )


def real(folder: Path, count: int, show: list[np.ndarray]) -> str:
    """The row for real images with lung masks."""
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row.get("mask")][:count]
    changed, lungs, touched, found = 0, 0, 0, 0
    for row in rows:
        film = cv2.imread(str(folder / row["image"]), cv2.IMREAD_GRAYSCALE)
        mask = cv2.imread(str(folder / row["mask"]), cv2.IMREAD_GRAYSCALE) > 0
        out, regions = burned_in.blank(film)
        differs = (out != film) & mask
        found += bool(regions)
        changed, lungs, touched = changed + differs.sum(), lungs + mask.sum(), touched + differs.any()
        if regions and len(show) < 24:
            show.append(cv2.resize(np.hstack([film, out]), (512, 256), interpolation=cv2.INTER_AREA))
    return (
        f"{f'{folder.name}, {found} with letters':<28}{len(rows):>7}{'–':>12}{'–':>12}{touched / len(rows):>12.1%}"
        f"{changed / lungs:>12.4%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--size", type=int, nargs="*", default=[256, 512])
    parser.add_argument("--lungs", type=Path, nargs="*", default=[])
    parser.add_argument("--show", type=Path, help="write some pictures before and after to this PNG file")
    chosen = parser.parse_args()
    show: list[np.ndarray] = []
    heads = ("images", "marker gone", "text gone", "lung hit", "lung pixels")
    print(f"{'':<28}{heads[0]:>7}" + "".join(f"{head:>12}" for head in heads[1:]))
    for size in chosen.size:
        print(phantoms(chosen.images, size, show), flush=True)
    for folder in chosen.lungs:
        print(real(folder, 10**9, show), flush=True)
    if chosen.show:
        while len(show) % 3:
            show.append(np.zeros_like(show[0]))
        cv2.imwrite(str(chosen.show), np.vstack([np.hstack(show[i : i + 3]) for i in range(0, len(show), 3)]))


if __name__ == "__main__":
    main()
