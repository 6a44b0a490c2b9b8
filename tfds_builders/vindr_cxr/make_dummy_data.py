"""Draws a tiny VinDr-CXR folder in the layout of PhysioNet or of Kaggle.

python -m tfds_builders.vindr_cxr.make_dummy_data --folder /tmp/vindr
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tfds_builders.image_report_folder.make_dummy_data import dicom, ellipses
from tfds_builders.testing import write_csv, write_files

LABELS = (
    *("Aortic enlargement", "Atelectasis", "Calcification", "Cardiomegaly", "Clavicle fracture", "Consolidation"),
    *("Edema", "Emphysema", "Enlarged PA", "ILD", "Infiltration", "Lung Opacity", "Lung cavity", "Lung cyst"),
    *("Mediastinal shift", "Nodule/Mass", "Pleural effusion", "Pleural thickening", "Pneumothorax"),
    *("Pulmonary fibrosis", "Rib fracture", "Other lesion", "COPD", "Lung tumor", "Pneumonia", "Tuberculosis"),
    *("Other diseases", "No finding"),
)
READERS = ("R8", "R9", "R10")
# image -> reader -> findings with boxes x_min, y_min, x_max, y_max (None: said of the whole image)
Findings = dict[str, tuple[float, ...] | None]
TRAIN: dict[str, dict[str, Findings]] = {
    "0" * 31 + "1": {
        "R8": {"Cardiomegaly": (20, 40, 60, 80), "Pneumonia": None},
        "R9": {"Cardiomegaly": (22, 42, 62, 78), "Pneumonia": None},
        "R10": {"Nodule/Mass": (10, 10, 20, 20)},
    },
    "0" * 31 + "2": {reader: {"No finding": None} for reader in READERS},
    "0" * 31 + "3": {
        "R8": {"Other diseases": None},
        "R9": {"Other diseases": None},
        "R10": {"Rib fracture": (30, 30, 20, 40)},  # right of its left edge
    },
    "0" * 31 + "4": {reader: {"No finding": None} for reader in READERS},  # no file
}
TEST: dict[str, dict[str, Findings]] = {"0" * 31 + "8": {"": {"Pleural effusion": (8, 60, 40, 90)}}}
MISSING = "0" * 31 + "4"


def write(folder: Path, form: str = "physionet") -> None:
    """Writes tables and DICOM files of 96 x 80 pixels; `form`: physionet or kaggle."""
    files: dict[str, bytes | str] = {}
    for part, images in (("train", TRAIN), ("test", TEST)):
        boxes, labels, kaggle = [], [], []
        for number, (image, readings) in enumerate(images.items()):
            for reader, findings in readings.items():
                who = [reader] if part == "train" else []
                labels.append([image, *who, *(int(name in findings) for name in LABELS)])
                for name, box in findings.items():
                    name = "Other disease" if name == "Other diseases" else name
                    corners = box or ("", "", "", "")
                    boxes.append([image, *who, name, *corners])
                    if name in ("Cardiomegaly", "Nodule/Mass", "No finding"):
                        kaggle.append([image, name, 3, reader, *corners])
            if image != MISSING:
                files[f"{part}/{image}.dicom"] = dicom(ellipses(number), bits=8, inverted=number == 1)
        who = ("rad_id",) if part == "train" else ()
        corners = ("x_min", "y_min", "x_max", "y_max")
        if form == "physionet":
            write_csv(folder / f"annotations/annotations_{part}.csv", ("image_id", *who, "class_name", *corners), boxes)
            write_csv(folder / f"annotations/image_labels_{part}.csv", ("image_id", *who, *LABELS), labels)
        elif part == "train":
            write_csv(folder / "train.csv", ("image_id", "class_name", "class_id", "rad_id", *corners), kaggle)
    write_files(folder, files)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--form", choices=("physionet", "kaggle"), default="physionet")
    arguments = parser.parse_args()
    write(arguments.folder, arguments.form)
