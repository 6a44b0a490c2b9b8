"""VinDr-CXR as PhysioNet or Kaggle serves it: labels and boxes of three readers an image, fused.

    python -m medvlp_jax.prepare vindr_cxr --root /data/vindr-cxr/1.0.0

Access, counts and settings: README.md beside this file.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from medvlp_jax.data import film_records, splits, staging
from medvlp_jax.data.label_translations import KIND, MAYBE, NONE, SAME, Row, names_of, same, translate
from medvlp_jax.data.labels import ABSENT, PRESENT
from medvlp_jax.data.staging import Plan, Rejection
from medvlp_jax.data.tables import Table, find_file, find_optional, index_files
from tfds_builders import common

WHAT = "the PhysioNet folder (train/, test/, annotations/) or the Kaggle one (train.csv, train/)"
NO_FINDING = "No finding"
SPELLINGS = {"Other diseases": "Other disease"}
"""The label tables of train and test spell one label differently."""
LABELS = (
    Row(
        (NO_FINDING,), SAME, "No Finding", "no reader saw any of the listed findings (in the Kaggle form, of fourteen)"
    ),
    *same(("Cardiomegaly", "Edema", "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural effusion")),
    Row(("Lung Opacity",), SAME, "Lung Opacity", "the data paper calls it a blanket tag for opacities in lung fields"),
    Row(("Infiltration",), KIND, "Lung Opacity", "the labeler reads infiltration as Lung Opacity"),
    Row(
        ("Consolidation", "ILD", "Pulmonary fibrosis", "Nodule/Mass", "Calcification", "Lung cavity", "Lung tumor"),
        MAYBE,
        "Lung Opacity",
        "the blanket tag covers them, but readers who name them need not set it",
    ),
    Row(
        ("Atelectasis", "Edema", "Pneumonia", "Tuberculosis"),
        MAYBE,
        "Lung Opacity",
        "they show as opacities, which readers need not tag again",
    ),
    Row(("Nodule/Mass",), SAME, "Lung Lesion", "any space-occupying lesion, one or more (data paper)"),
    Row(("Lung tumor",), KIND, "Lung Lesion", "the labeler reads tumor as Lung Lesion"),
    Row(
        ("Other lesion", "Lung cavity", "Lung cyst"),
        MAYBE,
        "Lung Lesion",
        "lesions, of which the labeler reads some (a cavitary lesion) as Lung Lesion",
    ),
    Row(("Pleural thickening",), KIND, "Pleural Other", "the labeler's first phrase for it"),
    Row(("Rib fracture", "Clavicle fracture"), KIND, "Fracture", "a fracture"),
    Row(("Pulmonary fibrosis",), NONE, "", "of the lung (data paper); the labeler puts fibrosis under Pleural Other"),
    Row(
        ("Aortic enlargement", "Enlarged PA", "Mediastinal shift"),
        NONE,
        "",
        "not a statement that the mediastinum is wide",
    ),
)
BOX_NAMES = {**names_of(LABELS), "Infiltration": "Infiltration"}


@dataclasses.dataclass(eq=False)
class VindrConfig(common.LocalConfig):
    """Settings of VinDr-CXR."""

    votes: int = 2
    """Readers of an image that must agree on a label, and on a box."""
    overlap: float = 0.4
    """Intersection over union from which two readers' boxes of one finding count as the same."""
    validation_share: float = 0.2
    """Share of the PhysioNet training images that become validation; the Kaggle form is drawn by --fractions."""


CONFIG = VindrConfig(name="default")


@dataclasses.dataclass
class Reading:
    """What the readers said of one image: readers, votes per label, and boxes (finding, reader, [y, x, y, x])."""

    row: int
    readers: set[str] = dataclasses.field(default_factory=set)
    votes: dict[str, set[str]] = dataclasses.field(default_factory=lambda: collections.defaultdict(set))
    boxes: list[tuple[str, str, list[float]]] = dataclasses.field(default_factory=list)


def plan(config: VindrConfig) -> Plan:
    """One work item per image. Raises: ValueError for a file or column that is not there."""
    root = common.root_of(config, WHAT)
    if config.votes < 1 or not 0 < config.overlap <= 1:
        raise ValueError(f"votes={config.votes} must be at least 1 and overlap={config.overlap} in (0, 1].")
    rejections: list[Rejection] = []
    items, tables = [], []
    kaggle = find_optional(root, ("train.csv", "train.csv.gz"))
    parts = ("train", "test") if kaggle is None else ("kaggle",)
    files = {Path(name).stem: path for name, path in index_files(root, (".dicom", ".dcm", ".png", ".jpg")).items()}
    for part in parts:
        if part == "kaggle":
            found, used, names = read_kaggle(kaggle, rejections)  # type: ignore[arg-type]
        else:
            found, used, names = read_physionet(root, part, rejections)
        tables += used
        for image, reading in found.items():
            split = "" if part == "kaggle" else part
            if part == "train":
                split = "validation" if splits.draw(config.seed, image) < config.validation_share else "train"
            items.append(_item(root, files.get(image), image, reading, split, names, config))
    rule = f"official test, {config.validation_share:g} of train is validation, seed {config.seed}"
    return common.finish_plan(items, rejections, config, tables=tables, split_rule="" if kaggle else rule)


def _item(
    root: Path, path: str | None, image: str, reading: Reading, split: str, names: Iterable[str], config: VindrConfig
) -> dict[str, Any]:
    needed = min(config.votes, len(reading.readers))
    own = {name: PRESENT if len(reading.votes.get(name, ())) >= needed else ABSENT for name in names}
    path = path or f"{image}.dicom"
    return {
        "row": reading.row,
        "image": path,
        "path": str(root / path),
        "image_id": image,
        "study_id": image,
        "patient_id": image,
        "split": split,
        "view": "FRONTAL",
        "labels": translate(own, LABELS),
        "own_labels": own,
        "pixel_boxes": [
            {"box": box, "finding": BOX_NAMES.get(name, name)}
            for name, box in fuse(reading.boxes, needed, config.overlap)
        ],
        "facts": [f"readers {len(reading.readers)}"],
    }


def read_kaggle(path: Path, rejections: list[Rejection]) -> tuple[dict[str, Reading], list[Table], list[str]]:
    """(readings by image, tables, label names) of the competition's train.csv, one row per reader and finding."""
    table = Table(path, ("image_id", "class_name", "rad_id", "x_min", "y_min", "x_max", "y_max"))
    found, names = _read_boxes(table, rejections)
    return found, [table], names


def read_physionet(
    root: Path, part: str, rejections: list[Rejection]
) -> tuple[dict[str, Reading], list[Table], list[str]]:
    """The same of annotations/image_labels_<part>.csv and annotations_<part>.csv; test has one consensus reading."""
    places = ("annotations/{}", "{}")
    path = find_file(root, [p.format(f"annotations_{part}.csv") for p in places], f"box table of {part}")
    corners = ("image_id", "class_name", "x_min", "y_min", "x_max", "y_max")
    boxes = Table(path, corners, ("rad_id",))
    path = find_file(root, [p.format(f"image_labels_{part}.csv") for p in places], f"label table of {part}")
    columns = Table(path, ("image_id",)).columns
    names = [name for name in columns if name not in ("image_id", "rad_id")]
    labels = Table(path, ("image_id", *names), ("rad_id",))
    found, _ = _read_boxes(boxes, rejections)
    for reading in found.values():
        reading.votes.clear()  # the label table says it for all findings
    for number, row in labels:
        image, reader = row["image_id"].strip(), row.get("rad_id", "consensus").strip()
        reading = found.setdefault(image, Reading(number))
        reading.readers.add(reader)
        for name in names:
            try:
                said = float(row[name] or 0) > 0
            except ValueError:
                rejections.append(Rejection("bad_label", row=number, item=image, detail=name))
                continue
            if said:
                reading.votes[SPELLINGS.get(name, name)].add(reader)
    return found, [boxes, labels], [SPELLINGS.get(name, name) for name in names]


def _read_boxes(table: Table, rejections: list[Rejection]) -> tuple[dict[str, Reading], list[str]]:
    found: dict[str, Reading] = {}
    names: dict[str, None] = {}
    for number, row in table:
        image, reader = row["image_id"].strip(), row.get("rad_id", "consensus").strip()
        name = SPELLINGS.get(row["class_name"].strip(), row["class_name"].strip())
        reading = found.setdefault(image, Reading(number))
        reading.readers.add(reader)
        reading.votes[name].add(reader)
        names[name] = None
        corners = [row[column].strip() for column in ("y_min", "x_min", "y_max", "x_max")]
        if not any(corners):
            continue
        try:
            top, left, bottom, right = (float(corner) for corner in corners)
        except ValueError:
            rejections.append(Rejection("bad_box", row=number, item=image))
            continue
        if top >= bottom or left >= right:
            rejections.append(Rejection("bad_box", row=number, item=image))
            continue
        reading.boxes.append((name, reader, [top, left, bottom, right]))
    return found, sorted(names)


def fuse(boxes: list[tuple[str, str, list[float]]], votes: int, overlap: float) -> list[tuple[str, list[float]]]:
    """Boxes that enough readers drew, each the mean of theirs.

    A box joins the group of its finding whose mean it overlaps most, from `overlap` on; a group counts when `votes`
    different readers are in it. The order of the rows decides ties alone.
    """
    groups: list[tuple[str, list[list[float]], set[str]]] = []
    for name, reader, box in boxes:
        best, place = 0.0, -1
        for index, (group_name, members, _) in enumerate(groups):
            if group_name == name:
                value = _overlap(np.mean(members, axis=0), np.asarray(box))
                if value > best:
                    best, place = value, index
        if best >= overlap:
            groups[place][1].append(box)
            groups[place][2].add(reader)
        else:
            groups.append((name, [box], {reader}))
    return [(name, np.mean(members, axis=0).tolist()) for name, members, readers in groups if len(readers) >= votes]


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes [top, left, bottom, right]."""
    inner = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0).prod()
    return float(inner / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - inner))


def make_examples(item: dict[str, Any], config: VindrConfig) -> list[staging.Example]:
    """The record of one image. Raises: Rejection."""
    return film_records.make_record(item, config)


describe = common.describe


class VindrCxr(common.LocalBuilder):
    """TFDS builder; run it through `python -m medvlp_jax.prepare vindr_cxr`."""

    ABOUT = "VinDr-CXR images with fused labels and boxes."
    plan, make_examples = staticmethod(plan), staticmethod(make_examples)
