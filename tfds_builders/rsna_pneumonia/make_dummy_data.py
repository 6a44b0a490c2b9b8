"""Draws a tiny RSNA Pneumonia folder (stage 2) in the true layout.

python -m tfds_builders.rsna_pneumonia.make_dummy_data --folder /tmp/rsna
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tfds_builders.image_report_folder.make_dummy_data import dicom, ellipses
from tfds_builders.testing import write_csv, write_files

IDS = [f"{n:08x}-14fd-4e49-80ba-63a80b6bdd{n:02x}" for n in range(6)]
# image, class, boxes (x, y, width, height in 1024 pixels)
IMAGES: list[tuple[str, str, list[tuple[float, ...]]]] = [
    (IDS[0], "Normal", []),
    (IDS[1], "No Lung Opacity / Not Normal", []),
    (IDS[2], "Lung Opacity", [(256.0, 128.0, 128.0, 512.0), (600.0, 512.0, 200.0, 256.0)]),
    (IDS[3], "Lung Opacity", [(100.0, 100.0, 100.0, 100.0)]),
    (IDS[4], "Normal", []),
    (IDS[5], "Normal", []),  # no file
]
NIH = ["00000001_000.png", "00000001_001.png", "00000002_000.png", "00000003_000.png", "00000004_000.png"]


def write(folder: Path) -> None:
    """Writes the tables, DICOM files of 128 x 128 pixels, a mapping to NIH names and an NIH test list."""
    boxes, classes = [], []
    files: dict[str, bytes | str] = {}
    for number, (image, kind, of_image) in enumerate(IMAGES):
        boxes += [[image, *box, 1] for box in of_image] or [[image, "", "", "", "", 0]]
        classes += [[image, kind]] * max(len(of_image), 1)
        if number < 5:
            data = dicom(ellipses(number, 128, 128), bits=8, ViewPosition="AP" if number % 2 else "PA")
            files[f"stage_2_train_images/{image}.dcm"] = data
    mapping = [{"img_id": nih, "subset_img_id": image} for nih, image in zip(NIH, IDS, strict=False)]
    files["nih/mapping.json"] = json.dumps(mapping)
    files["test_list.txt"] = "00000003_000.png\n00000004_000.png\n"
    write_files(folder, files)
    write_csv(folder / "stage_2_train_labels.csv", ("patientId", "x", "y", "width", "height", "Target"), boxes)
    write_csv(folder / "stage_2_detailed_class_info.csv", ("patientId", "class"), classes)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    write(parser.parse_args().folder)
