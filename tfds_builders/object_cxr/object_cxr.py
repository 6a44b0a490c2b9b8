"""Object-CXR: foreign objects on chest radiographs as rectangles, ellipses and polygons.

    python -m medvlp_jax.prepare object_cxr --root /data/object-cxr

Access, counts and settings: README.md beside this file.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import cv2
import numpy as np

from medvlp_jax.data import film_records, splits, staging
from medvlp_jax.data.labels import ABSENT, PRESENT
from medvlp_jax.data.staging import Plan, Rejection
from medvlp_jax.data.tables import Table, find_file, find_optional, index_files
from tfds_builders import common

WHAT = "a folder with train.csv, dev.csv (and test.csv) and the images"
FINDING = "Foreign object"
RECTANGLE, ELLIPSE, POLYGON = 0, 1, 2


@dataclasses.dataclass(eq=False)
class ObjectConfig(common.LocalConfig):
    """Settings of Object-CXR."""

    validation_share: float = 0.2
    """Share of the training images that become validation when dev.csv has to be the test split."""


CONFIG = ObjectConfig(name="default")


def plan(config: ObjectConfig) -> Plan:
    """One work item per image. Raises: ValueError for a table or column that is not there."""
    root = common.root_of(config, WHAT)
    paths = {part: find_optional(root, (f"{part}.csv",)) for part in ("train", "dev", "test")}
    for part in ("train", "dev"):
        paths[part] = paths[part] or find_file(root, (f"{part}.csv",), f"{part} table")
    split_of = {"train": "train", "dev": "validation" if paths["test"] else "test", "test": "test"}
    items, rejections, tables = [], [], []
    for part, path in paths.items():
        if path is None:
            continue
        columns = Table(path, ()).columns
        name_column = "image_name" if "image_name" in columns else "image_path"
        table = Table(path, (name_column, "annotation"))
        tables.append(table)
        base = root / part if (root / part).is_dir() else root
        files = index_files(base, (".jpg", ".jpeg", ".png"))
        for number, row in table:
            name = row[name_column].strip().rpartition("/")[2]
            try:
                objects = read_objects(row["annotation"])
            except ValueError as error:
                rejections.append(Rejection("bad_annotation", row=number, item=name, detail=str(error)))
                continue
            split = split_of[part]
            if part == "train" and not paths["test"]:
                split = "validation" if splits.draw(config.seed, name) < config.validation_share else "train"
            items.append(
                {
                    "row": number,
                    "image": f"{part}/{name}",
                    "path": str(base / files.get(name, name)),
                    "image_id": f"{part}/{name}",
                    "study_id": f"{part}/{name}",
                    "patient_id": f"{part}/{name}",
                    "split": split,
                    "view": "FRONTAL",
                    "own_labels": {FINDING: PRESENT if objects else ABSENT},
                    "pixel_boxes": [{"box": bounds(points), "finding": FINDING} for _, points in objects],
                    "objects": objects,
                }
            )
    rule = "official train, dev as validation, test"
    if not paths["test"]:
        rule = f"official dev as test, {config.validation_share:g} of train is validation, seed {config.seed}"
    return common.finish_plan(items, rejections, config, tables=tables, split_rule=rule)


def read_objects(cell: str) -> list[tuple[int, list[list[float]]]]:
    """ "type x1 y1 x2 y2 ...;..." -> [(type, points [[x, y], ...])]; an empty cell is no object.

    Raises: ValueError for an unknown type or numbers that are no points.
    """
    objects = []
    for part in filter(None, (part.strip() for part in cell.split(";"))):
        kind, *numbers = part.split()
        if kind not in ("0", "1", "2"):
            raise ValueError(f"object type {kind}")
        points = np.array([float(number) for number in numbers])
        if len(points) % 2 or len(points) < (6 if kind == "2" else 4):
            raise ValueError(f"{len(points)} coordinates for type {kind}")
        objects.append((int(kind), points.reshape(-1, 2).tolist()))
    return objects


def bounds(points: list[list[float]]) -> list[float]:
    """[top, left, bottom, right] in pixels of points [[x, y], ...]."""
    x, y = np.asarray(points).T
    return [float(y.min()), float(x.min()), float(y.max()), float(x.max())]


def draw(objects: list[tuple[int, list[list[float]]]], shape: tuple[int, int]) -> np.ndarray:
    """All objects filled, uint8 0/1 of the shape of the image."""
    mask = np.zeros(shape, np.uint8)
    for kind, points in objects:
        top, left, bottom, right = bounds(points)
        if kind == RECTANGLE:
            cv2.rectangle(mask, (round(left), round(top)), (round(right), round(bottom)), 1, -1)
        elif kind == ELLIPSE:
            centre, axes = ((left + right) / 2, (top + bottom) / 2), (right - left, bottom - top)
            cv2.ellipse(mask, (centre, axes, 0.0), 1, -1)
        else:
            cv2.fillPoly(mask, [np.rint(points).astype(np.int32)], 1)
    return mask


def make_examples(item: dict[str, Any], config: ObjectConfig) -> list[staging.Example]:
    """The record of one image, its objects as boxes and one mask. Raises: Rejection."""
    objects = item["objects"]
    masks = (lambda image: [(FINDING, draw(objects, image.shape))]) if objects else ()
    return film_records.make_record(item, config, masks=masks)


describe = common.describe


class ObjectCxr(common.LocalBuilder):
    """TFDS builder; run it through `python -m medvlp_jax.prepare object_cxr`."""

    ABOUT = "Object-CXR images with foreign objects."
    plan, make_examples = staticmethod(plan), staticmethod(make_examples)
