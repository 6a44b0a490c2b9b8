"""ChestX-Det10 (10 findings, boxes) and ChestX-Det (13 findings, boxes and polygons): NIH images under new names.

    python -m medvlp_jax.prepare chestx_det10 --root /data/chestx-det10

Access, counts and settings: README.md beside this file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from medvlp_jax.data import film_records, splits, staging
from medvlp_jax.data.label_translations import KIND, NONE, SAME, Row, names_of, same, translate
from medvlp_jax.data.labels import ABSENT, PRESENT
from medvlp_jax.data.staging import Plan, Rejection
from medvlp_jax.data.tables import find_file, index_files
from tfds_builders import common
from tfds_builders.chestxray14.chestxray14 import patient_id

WHAT = "a folder with train.json and test.json (or ChestX_Det_train.json and ChestX_Det_test.json) and the images"
FRAME = 1024
LABELS = (
    *same(("Atelectasis", "Cardiomegaly", "Consolidation", "Fracture", "Pneumothorax")),
    Row(("Effusion",), SAME, "Pleural Effusion", "the set's name for it"),
    Row(("Mass", "Nodule"), SAME, "Lung Lesion", "what the name covers first of all; absent when both are"),
    Row(("Diffuse Nodule",), KIND, "Lung Lesion", "nodules"),
    Row(("Pleural Thickening",), KIND, "Pleural Other", "the labeler's first phrase for it"),
    Row(("Calcification", "Emphysema", "Fibrosis"), NONE, "", "no observation of the fourteen covers just this"),
)
BOX_NAMES = names_of(LABELS)
NIH_NAME = re.compile(r"(\d{8})_\d{3}")
"""Stem of an NIH file name, which tells the patient: so in the first lists of ChestX-Det10, not in later ones."""


@dataclasses.dataclass(eq=False)
class DetConfig(common.LocalConfig):
    """Settings of ChestX-Det."""

    validation_share: float = 0.1
    """Share of the training patients that become validation; where patients are unknown, of the images."""
    split_conflict: str = "first"
    """A patient in both lists keeps the images of test."""


CONFIG = DetConfig(name="default")


def plan(config: DetConfig) -> Plan:
    """One work item per entry of the two lists. Raises: ValueError for a list that is not there or no list."""
    root = common.root_of(config, WHAT)
    entries, checksums = [], {}
    for part in ("test", "train"):
        path = find_file(root, (f"{part}.json", f"ChestX_Det_{part}.json", f"chestx_det10_{part}.json"), f"{part} list")
        checksums[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        entries += [(part, number, entry) for number, entry in enumerate(read_list(path), start=1)]
    names = sorted({name for _, _, entry in entries for name in entry["syms"]})
    places = {
        part: next((root / f for f in (f"{part}_data", part) if (root / f).is_dir()), root)
        for part in ("train", "test")
    }
    files = {part: index_files(place, (".png", ".jpg")) for part, place in places.items()}
    items, rejections = [], []
    for part, number, entry in entries:
        name, boxes, polygons = entry["file_name"], entry["boxes"], entry.get("polygons") or []
        if len(boxes) != len(entry["syms"]) or (polygons and len(polygons) != len(boxes)):
            rejections.append(Rejection("bad_annotation", row=number, item=f"{part}/{name}"))
            continue
        image, patient, split = f"{part}/{name}", f"{part}/{name}", "test"
        if nih := NIH_NAME.fullmatch(Path(name).stem):
            image, patient = Path(name).stem, patient_id(nih.group(1))
        if part == "train":
            drawn = splits.draw(config.seed, patient if nih else name)
            split = "validation" if drawn < config.validation_share else "train"
        own = {known: PRESENT if known in entry["syms"] else ABSENT for known in names}
        items.append(
            {
                "row": number,
                "image": f"{part}/{name}",
                "path": str(places[part] / files[part].get(name, name)),
                "image_id": image,
                "study_id": image,
                "patient_id": patient,
                "split": split,
                "view": "FRONTAL",
                "labels": translate(own, LABELS),
                "own_labels": own,
                "boxes": [_box(box, sym) for box, sym in zip(boxes, entry["syms"], strict=True)],
                "polygons": [[sym, polygon] for sym, polygon in zip(entry["syms"], polygons, strict=False)],
                "facts": ["NIH patient known" if nih else "NIH patient unknown"],
            }
        )
    rule = f"official test list, {config.validation_share:g} of the training list is validation, seed {config.seed}"
    return common.finish_plan(items, rejections, config, split_rule=rule, provenance={"tables": checksums})


def read_list(path: Path) -> list[dict[str, Any]]:
    """The entries of a list. Raises: ValueError naming the fields that one lacks."""
    entries = json.loads(path.read_text(encoding="utf-8"))
    for entry in entries[:1]:
        lacking = {"file_name", "syms", "boxes"} - set(entry)
        if lacking:
            raise ValueError(f"{path}: entries lack {', '.join(sorted(lacking))}; they have {', '.join(entry)}.")
    return entries


def _box(corners: list[float], sym: str) -> dict[str, Any]:
    """[x1, y1, x2, y2] in pixels of 1024 -> a box of the record."""
    left, top, right, bottom = (min(max(float(edge) / FRAME, 0.0), 1.0) for edge in corners)
    return {"box": [top, left, bottom, right], "finding": BOX_NAMES.get(sym, sym)}


def make_examples(item: dict[str, Any], config: DetConfig) -> list[staging.Example]:
    """The record of one image; polygons of one finding are one mask. Raises: Rejection."""
    masks: dict[str, np.ndarray] = {}
    for sym, polygon in item["polygons"]:
        mask = masks.setdefault(BOX_NAMES.get(sym, sym), np.zeros((FRAME, FRAME), np.uint8))
        cv2.fillPoly(mask, [np.rint(np.asarray(polygon, np.float64).reshape(-1, 2)).astype(np.int32)], 1)
    return film_records.make_record(item, config, masks=list(masks.items()))


describe = common.describe


class ChestxDet10(common.LocalBuilder):
    """TFDS builder; run it through `python -m medvlp_jax.prepare chestx_det10`."""

    ABOUT = "ChestX-Det images with boxes and polygons."
    plan, make_examples = staticmethod(plan), staticmethod(make_examples)
