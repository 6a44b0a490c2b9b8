"""SIIM-ACR Pneumothorax Segmentation: masks from run lengths, on NIH images.

    python -m medvlp_jax.prepare siim_pneumothorax --root /data/siim

Access, counts and settings: README.md beside this file.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from medvlp_jax.data import film_records, staging
from medvlp_jax.data.labels import ABSENT, PRESENT
from medvlp_jax.data.staging import Plan, Rejection
from medvlp_jax.data.tables import Table, find_file, index_files
from tfds_builders import common

WHAT = "a folder with train-rle.csv (or stage_2_train.csv) and dicom-images-train/"
FINDING = "Pneumothorax"
MASK_SIDE = 1024


@dataclasses.dataclass(eq=False)
class SiimConfig(common.LocalConfig):
    """Settings of the SIIM-ACR set."""

    fractions: str = "0.7,0.15,0.15"
    """Shares of images for train, validation and test; several masks of an image stay together."""
    table: str = ""
    """Name of the run-length table under --root, where there are several."""


CONFIG = SiimConfig(name="default")


def plan(config: SiimConfig) -> Plan:
    """One work item per image, with all its masks. Raises: ValueError for a file or column that is not there."""
    root = common.root_of(config, WHAT)
    patterns = (config.table,) if config.table else ("train-rle.csv*", "*train-rle.csv*", "stage_2_train.csv*")
    table = Table(find_file(root, patterns, "run-length table"), ("ImageId", "EncodedPixels"))
    files = {Path(name).stem: path for name, path in index_files(root, (".dcm",)).items()}
    files |= {Path(name).stem: path for name, path in index_files(root, (".png", ".jpg")).items() if name not in files}
    rejections: list[Rejection] = []
    items = []
    for image, (row, codes) in read_masks(table).items():
        path = files.get(image) or f"{image}.dcm"
        items.append(
            {
                "row": row,
                "image": path,
                "path": str(root / path),
                "image_id": image,
                "study_id": image,
                "patient_id": image,
                "split": "",
                "view": "" if path.endswith(".dcm") else "FRONTAL",
                "view_from_header": path.endswith(".dcm"),
                "labels": {FINDING: PRESENT if codes else ABSENT},
                "codes": codes,
                "facts": [f"masks {min(len(codes), 6)}{' or more' if len(codes) > 5 else ''}"],
            }
        )
    return common.finish_plan(items, rejections, config, tables=[table])


def read_masks(table: Table) -> dict[str, tuple[int, list[str]]]:
    """Image id -> (its first row, its run-length codes); -1, with or without a blank before it, is none."""
    found: dict[str, tuple[int, list[str]]] = {}
    for number, row in table:
        image, code = row["ImageId"].strip(), row["EncodedPixels"].strip()
        _, codes = found.setdefault(image, (number, []))
        if code not in ("-1", ""):
            codes.append(code)
    return found


def union(codes: list[str]) -> np.ndarray:
    """The masks of an image as one, uint8 0/1 [1024, 1024]. Raises: ValueError for a broken code."""
    mask = np.zeros((MASK_SIDE, MASK_SIDE), np.uint8)
    for code in codes:
        mask |= film_records.rle_mask(code, MASK_SIDE, MASK_SIDE, relative=True)
    return mask


def make_examples(item: dict[str, Any], config: SiimConfig) -> list[staging.Example]:
    """The record of one image, its masks united. Raises: Rejection, "bad_mask" for a broken run-length code."""
    try:
        masks = [(FINDING, union(item["codes"]))] if item["codes"] else []
    except ValueError as error:
        raise Rejection("bad_mask", row=item["row"], item=item["image"], detail=str(error)) from None
    return film_records.make_record(item, config, masks=masks)


describe = common.describe


class SiimPneumothorax(common.LocalBuilder):
    """TFDS builder; run it through `python -m medvlp_jax.prepare siim_pneumothorax`."""

    ABOUT = "SIIM-ACR images with pneumothorax masks."
    plan, make_examples = staticmethod(plan), staticmethod(make_examples)
