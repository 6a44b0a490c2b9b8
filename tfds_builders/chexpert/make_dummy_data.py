"""Draws a tiny CheXpert-v1.0-small folder in the true layout.

python -m tfds_builders.chexpert.make_dummy_data --folder /tmp/CheXpert-v1.0-small
"""

from __future__ import annotations

import argparse
from pathlib import Path

from medvlp_jax.data import images
from medvlp_jax.data.labels import CHEXPERT_LABELS
from tfds_builders.image_report_folder.make_dummy_data import ellipses
from tfds_builders.testing import write_csv, write_files

HEADER = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT_LABELS)
# file, AP/PA, labels
TRAIN: list[tuple[str, str, dict[str, str]]] = [
    ("train/patient00001/study1/view1_frontal.jpg", "AP", {"No Finding": "1.0", "Pleural Effusion": "0.0"}),
    ("train/patient00001/study1/view2_lateral.jpg", "", {"No Finding": "1.0"}),
    ("train/patient00002/study1/view1_frontal.jpg", "PA", {"Edema": "1.0", "Pneumonia": "-1.0"}),
    ("train/patient00002/study2/view1_frontal.jpg", "LL", {"Edema": "1.0", "Atelectasis": "0.0"}),
    ("train/patient00003/study1/view1_frontal.jpg", "AP", {"Edema": "1.0"}),
    ("train/patient00004/study1/view1_frontal.jpg", "AP", {"Edema": "1.0"}),
    ("train/patient00004/study1/view2_frontal.jpg", "PA", {"Edema": "1.0"}),
    ("train/patient00005/study1/view1_frontal.jpg", "AP", {"Cardiomegaly": "1.0", "Fracture": "0.0"}),
    ("train/patient00006/study1/view1_frontal.jpg", "AP", {"Cardiomegaly": "1.0", "Fracture": "1.0"}),
    ("train/patient00007/study1/view1_frontal.jpg", "AP", {"Edema": "maybe"}),
    ("train/patient00008/study1/view1_frontal.jpg", "AP", {"Lung Lesion": "1.0"}),  # no file
    ("patient00009.jpg", "AP", {}),
]
VALID = [("valid/patient64541/study1/view1_frontal.jpg", "AP", dict.fromkeys(CHEXPERT_LABELS, "0.0"))]
TEST = {"test/patient64741/study1": ("view1_frontal.jpg", "view2_lateral.jpg")}
MISSING = "patient00008"


def write(folder: Path, edition: str = "CheXpert-v1.0-small") -> None:
    """Writes tables and images; `edition` is the first folder of the paths in the tables."""
    files = {}
    for name, rows in (("train.csv", TRAIN), ("valid.csv", VALID)):
        table = []
        for number, (path, projection, labels) in enumerate(rows):
            side = "Lateral" if "lateral" in path else "Frontal"
            states = [labels.get(label, "") for label in CHEXPERT_LABELS]
            table.append([f"{edition}/{path}", "Female", 68, side, projection, *states])
            if MISSING not in path:
                files[path] = images.encode_jpeg(ellipses(number, 80, 96))
        write_csv(folder / name, HEADER, table)
    truth = []
    for study, views in TEST.items():
        truth.append([f"CheXpert-v1.0/{study}", *("1.0" if label == "Edema" else "0.0" for label in CHEXPERT_LABELS)])
        files |= {f"{study}/{view}": images.encode_jpeg(ellipses(len(view))) for view in views}
    write_csv(folder / "groundtruth.csv", ("Study", *CHEXPERT_LABELS), truth)
    write_files(folder, files)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    write(parser.parse_args().folder)
