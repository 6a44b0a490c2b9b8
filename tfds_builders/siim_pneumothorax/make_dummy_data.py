"""Draws a tiny SIIM-ACR Pneumothorax folder in the true layout.

python -m tfds_builders.siim_pneumothorax.make_dummy_data --folder /tmp/siim
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tfds_builders.image_report_folder.make_dummy_data import dicom, ellipses
from tfds_builders.testing import write_files

STEM = "1.2.276.0.7230010.3.1.4.8323329.1000.1517875201.85"
# Columns 256..383 of rows 128..255: 128 runs of 128 pixels, 896 between them. Starts count from the last end.
SQUARE = " ".join([f"{256 * 1024 + 128} 128"] + ["896 128"] * 127)
RIGHT = " ".join([f"{768 * 1024 + 512} 64"] + ["960 64"] * 63)
ROWS = [(0, "-1"), (1, SQUARE), (2, SQUARE), (2, RIGHT), (3, " -1"), (4, "5 6 7"), (5, "-1")]
MISSING = 5


def name(number: int) -> str:
    """An image id in the form of the set."""
    return f"{STEM}{number:04d}"


def write(folder: Path) -> None:
    """Writes the table, whose second column starts with a blank, and DICOM files of 128 x 128 pixels."""
    table = "ImageId, EncodedPixels\n" + "".join(f"{name(number)},{code}\n" for number, code in ROWS)
    files: dict[str, bytes | str] = {"train-rle.csv": table}
    for number in sorted({number for number, _ in ROWS} - {MISSING}):
        data = dicom(ellipses(number, 128, 128), bits=8, ViewPosition="PA")
        files[f"dicom-images-train/{name(number)}.1/{name(number)}.2/{name(number)}.dcm"] = data
    write_files(folder, files)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    write(parser.parse_args().folder)
