"""A contact sheet of phantoms with their findings named and boxed.

python -m tfds_builders.cxr_phantom.preview --out phantom.png [--size 256 --columns 4 --rows 3 --seed 0 --plain]
"""

import argparse

import cv2
import numpy as np

from tfds_builders.cxr_phantom.findings import Finding
from tfds_builders.cxr_phantom.picture import box_of, render
from tfds_builders.cxr_phantom.study import patient_body, sample_study

AMBER, WHITE = (60, 190, 255), (235, 235, 235)


def _name(finding: Finding) -> str:
    return " ".join(word for word in (finding.side, finding.zone, finding.variant or finding.kind) if word)


def tile(seed: int, patient: int, size: int, *, plain: bool = False, scale: int = 1) -> np.ndarray:
    """One phantom as BGR uint8, `size * scale` pixels wide, with a caption strip below it unless `plain`."""
    study = sample_study(seed, patient, 0)
    picture = render(patient_body(seed, patient), study.pose(seed, 0), study.findings, size)
    image = cv2.cvtColor(picture.film, cv2.COLOR_GRAY2BGR)
    image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    if plain:
        return image
    side = size * scale
    for mask in picture.masks:
        if box := box_of(mask):
            top, left, bottom, right = (round(v * side) for v in box)
            cv2.rectangle(image, (left - 2, top - 2), (right + 1, bottom + 1), AMBER, 1)
    strip = np.zeros((54, side, 3), np.uint8)
    names = [_name(f) for f in study.findings] or ["no finding"]
    for row in range(0, min(len(names), 6), 2):
        text = ", ".join(names[row : row + 2])
        cv2.putText(strip, text, (4, 14 + 8 * row), cv2.FONT_HERSHEY_SIMPLEX, 0.38, AMBER, 1, cv2.LINE_AA)
    cv2.putText(strip, study.views[0], (side - 24, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.38, WHITE, 1, cv2.LINE_AA)
    return np.concatenate([image, strip])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="PNG file to write")
    parser.add_argument("--size", type=int, default=256, help="pixels of each image")
    parser.add_argument("--columns", type=int, default=4)
    parser.add_argument("--rows", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first patient")
    parser.add_argument("--plain", action="store_true", help="pictures alone, without boxes and captions")
    args = parser.parse_args()
    if args.size < 32 or args.columns < 1 or args.rows < 1:
        parser.error(f"--size {args.size}, --columns {args.columns}, --rows {args.rows}: at least 32, 1 and 1.")
    scale = max(1, 256 // args.size)
    numbers = np.arange(args.rows * args.columns).reshape(args.rows, args.columns) + args.first
    sheet = np.vstack(
        [np.hstack([tile(args.seed, int(n), args.size, plain=args.plain, scale=scale) for n in row]) for row in numbers]
    )
    if not cv2.imwrite(args.out, sheet):
        parser.error(f"Cannot write {args.out}: choose a .png path in a folder that exists.")
    print(f"Wrote {args.out}: {sheet.shape[1]}×{sheet.shape[0]} pixels, {numbers.size} phantoms.")


if __name__ == "__main__":
    main()
