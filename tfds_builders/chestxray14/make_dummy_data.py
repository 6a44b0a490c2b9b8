"""Draws a tiny ChestX-ray14 folder in the true layout.

python -m tfds_builders.chestxray14.make_dummy_data --folder /tmp/nih
"""

from __future__ import annotations

import argparse
from pathlib import Path

from medvlp_jax.data import images
from tfds_builders.image_report_folder.make_dummy_data import ellipses
from tfds_builders.testing import write_files

TABLE_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]\n"
)
BOX_HEADER = "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"
# image, findings, view
ROWS = [
    ("00000001_000.png", "Cardiomegaly|Effusion", "PA"),
    ("00000001_001.png", "Mass|Pleural_Thickening", "AP"),
    ("00000002_000.png", "No Finding", "PA"),
    ("00000003_000.png", "Hernia", "PA"),
    ("00000004_000.png", "Infiltration", "AP"),
    ("00000005_000.png", "No Finding", "PA"),  # no file
    ("00000006_000.png", "Cold", "PA"),  # no such label
    ("00000007_000.png", "Nodule|Pneumonia", "PA"),
    ("00000008_000.png", "No Finding", "AP"),
]
TEST = ("00000007_000.png", "00000008_000.png")
MISSING = "00000005_000.png"


def write(folder: Path) -> None:
    """Writes the tables, the lists and images of 128 x 128 pixels in numbered folders."""
    table, files = TABLE_HEADER, {}
    for number, (name, findings, view) in enumerate(ROWS):
        table += f"{name},{findings},0,{int(name[:8])},57,M,{view},2682,2749,0.143,0.143\n"
        if name != MISSING:
            files[f"images_{number % 2 + 1:03d}/images/{name}"] = images.encode_png(ellipses(number, 128, 128))
    files["Data_Entry_2017_v2020.csv"] = table.encode()
    files["BBox_List_2017.csv"] = (
        f"{BOX_HEADER}00000004_000.png,Infiltrate,256.0,512.0,128.0,256.0\n"
        "00000007_000.png,Nodule,100.5,200.5,50.25,60.25\n00000007_000.png,Pneumonia,600,300,200,400,,\n"
    ).encode()
    files["test_list.txt"] = "\n".join(TEST).encode()
    files["train_val_list.txt"] = "\n".join(name for name, *_ in ROWS if name not in TEST).encode()
    write_files(folder, files)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    write(parser.parse_args().folder)
