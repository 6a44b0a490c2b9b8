"""TBX11K: healthy, sick but not tuberculosis, tuberculosis with boxes.

    python -m medvlp_jax.prepare tbx11k --root /data/TBX11K

Access, counts and settings: README.md beside this file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from medvlp_jax.data import film_records, splits, staging
from medvlp_jax.data.labels import ABSENT, PRESENT
from medvlp_jax.data.staging import Plan, Rejection
from medvlp_jax.data.tables import find_file
from tfds_builders import common

WHAT = "the folder TBX11K, with imgs/ and annotations/json/TBX11K_train.json and TBX11K_val.json"
CLASSES = {"health": "healthy", "sick": "sick, not tuberculosis", "tb": "tuberculosis"}
"""Folder of an image -> its class."""


@dataclasses.dataclass(eq=False)
class TbxConfig(common.LocalConfig):
    """Settings of TBX11K."""

    validation_share: float = 0.15
    """Share of the official training images that become validation; the official validation images are test."""


CONFIG = TbxConfig(name="default")


def plan(config: TbxConfig) -> Plan:
    """One work item per image of the two lists. Raises: ValueError for a list that is not there or lacks a field."""
    root = common.root_of(config, WHAT)
    pictures = root / "imgs" if (root / "imgs").is_dir() else root
    items, rejections, checksums = [], [], {}
    for part in ("train", "val"):
        places = (f"annotations/json/TBX11K_{part}.json", f"TBX11K_{part}.json")
        path = find_file(root, places, f"{part} list")
        checksums[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        for number, (name, size, boxes) in enumerate(read_list(path), start=1):
            kind = CLASSES.get(name.split("/")[0])
            if kind is None:
                rejections.append(Rejection("bad_path", row=number, item=name))
                continue
            split = "test"
            if part == "train":
                split = "validation" if splits.draw(config.seed, name) < config.validation_share else "train"
            items.append(
                {
                    "row": number,
                    "image": name,
                    "path": str(pictures / name),
                    "image_id": name.rpartition(".")[0],
                    "study_id": name.rpartition(".")[0],
                    "patient_id": name.rpartition(".")[0],
                    "split": split,
                    "view": "FRONTAL",
                    "labels": {"No Finding": PRESENT if kind == CLASSES["health"] else ABSENT},
                    "own_labels": {known: PRESENT if known == kind else ABSENT for known in CLASSES.values()},
                    "boxes": boxes,
                    "size": size,
                    "facts": [f"class {kind}"],
                }
            )
    rule = f"official val as test, {config.validation_share:g} of train is validation, seed {config.seed}"
    return common.finish_plan(items, rejections, config, split_rule=rule, provenance={"tables": checksums})


def read_list(path: Path) -> list[tuple[str, tuple[int, int], list[dict[str, Any]]]]:
    """(file name, (height, width), boxes in 0..1 under their category) of every image of a list in COCO form.

    Raises: ValueError naming what the list lacks.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    lacking = {"images", "annotations", "categories"} - set(content)
    if lacking:
        raise ValueError(f"{path} lacks {', '.join(sorted(lacking))}; it has {', '.join(content)}.")
    names = {category["id"]: category["name"] for category in content["categories"]}
    boxes: dict[Any, list[tuple[str, list[float]]]] = {}
    for annotation in content["annotations"]:
        name = names.get(annotation["category_id"], str(annotation["category_id"]))
        boxes.setdefault(annotation["image_id"], []).append((name, annotation["bbox"]))
    found = []
    for image in content["images"]:
        height, width = int(image["height"]), int(image["width"])
        of_image = []
        for name, (x, y, w, h) in boxes.get(image["id"], ()):
            edges = np.array([y, x, y + h, x + w]) / (height, width, height, width)
            of_image.append({"box": np.clip(edges, 0, 1).tolist(), "finding": name})
        found.append((image["file_name"], (height, width), of_image))
    return found


def make_examples(item: dict[str, Any], config: TbxConfig) -> list[staging.Example]:
    """The record of one image; all its boxes filled are the mask of tuberculosis. Raises: Rejection."""
    masks = [(CLASSES["tb"], filled(item["boxes"], item["size"]))] if item["boxes"] else []
    return film_records.make_record(item, config, masks=masks)


def filled(boxes: list[dict[str, Any]], size: tuple[int, int]) -> np.ndarray:
    """Boxes of 0..1 as a mask of (height, width)."""
    height, width = size
    mask = np.zeros((height, width), np.uint8)
    for box in boxes:
        top, left, bottom, right = np.rint(np.asarray(box["box"]) * (height, width, height, width)).astype(int)
        mask[top:bottom, left:right] = 1
    return mask


describe = common.describe


class Tbx11k(common.LocalBuilder):
    """TFDS builder; run it through `python -m medvlp_jax.prepare tbx11k`."""

    ABOUT = "TBX11K images with tuberculosis boxes."
    plan, make_examples = staticmethod(plan), staticmethod(make_examples)
