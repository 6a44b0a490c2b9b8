"""RSNA Pneumonia Detection Challenge, stage 2: opacity boxes and three classes, on NIH images.

    python -m medvlp_jax.prepare rsna_pneumonia --root /data/rsna

Access, counts and settings: README.md beside this file.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from medvlp_jax.data import film_records, splits, staging
from medvlp_jax.data.label_translations import MAYBE, SAME, Row, translate
from medvlp_jax.data.labels import ABSENT, PRESENT
from medvlp_jax.data.staging import Plan, Rejection
from medvlp_jax.data.tables import Table, find_file, find_optional, index_files, read_text
from tfds_builders import common
from tfds_builders.chestxray14.chestxray14 import patient_id

WHAT = "a folder with stage_2_train_labels.csv, stage_2_detailed_class_info.csv and stage_2_train_images/"
NORMAL, ABNORMAL, OPACITY = "Normal", "No Lung Opacity / Not Normal", "Lung Opacity"
LABELS = (
    Row((NORMAL,), SAME, "No Finding", "the class says so; both other classes say that there is something"),
    Row((OPACITY,), SAME, "Pneumonia", "opacity suspected to be pneumonia: the target of the challenge"),
    Row((OPACITY,), SAME, "Lung Opacity", "an opacity is boxed; Normal has none"),
    Row(
        (ABNORMAL,),
        MAYBE,
        "Lung Opacity",
        "opacities that are not pneumonia are in this class too (task description of the challenge)",
    ),
)
BOX_FRAME = 1024.0
MAPPING = "pneumonia-challenge-dataset-mappings_2018.json"


@dataclasses.dataclass(eq=False)
class RsnaConfig(common.LocalConfig):
    """Settings of the RSNA set."""

    fractions: str = "0.7,0.15,0.15"
    """Shares for train, validation and test."""
    negatives: str = "all"
    """Images without opacity: "all", or "normal" (class Normal alone)."""
    nih_mapping: str = ""
    """RSNA's pneumonia-challenge-dataset-mappings_2018.json, or a CSV with its fields img_id (NIH file name) and
    subset_img_id: gives patients. Default: the one under --root, if any."""
    nih_test_list: str = ""
    """test_list.txt of ChestX-ray14: with --nih_mapping, images of the official NIH test set are the test split."""


CONFIG = RsnaConfig(name="default")


def plan(config: RsnaConfig) -> Plan:
    """One work item per image. Raises: ValueError for a file or column that is not there."""
    root = common.root_of(config, WHAT)
    if config.negatives not in ("all", "normal"):
        raise ValueError(f"negatives={config.negatives!r}; choices: all, normal.")
    mapping = Path(config.nih_mapping) if config.nih_mapping else find_optional(root, (MAPPING, f"*/{MAPPING}"))
    if config.nih_test_list and mapping is None:
        raise ValueError("--nih_test_list needs --nih_mapping, which tells the NIH image of every RSNA image.")
    labels = Table(
        find_file(root, ("stage_2_train_labels.csv*", "*stage_2_train_labels.csv*"), "box table"),
        ("patientId", "x", "y", "width", "height", "Target"),
    )
    tables = [labels]
    class_of: dict[str, str] = {}
    path = find_optional(root, ("stage_2_detailed_class_info.csv*", "*detailed_class_info.csv*"))
    if path is not None:
        tables.append(Table(path, ("patientId", "class")))
        class_of = {row["patientId"].strip(): row["class"].strip() for _, row in tables[-1]}
    elif config.negatives == "normal":
        raise ValueError(f"--negatives normal needs stage_2_detailed_class_info.csv, which is not under {root}.")
    nih = read_mapping(mapping) if mapping else {}
    nih_test = set(read_text(Path(config.nih_test_list))[0].split()) if config.nih_test_list else set()
    files = {Path(name).stem: path for name, path in index_files(root, (".dcm", ".png", ".jpg")).items()}
    rejections: list[Rejection] = []
    items = []
    for image, (row, target, boxes) in read_boxes(labels, rejections).items():
        kind = class_of.get(image, "")
        if not target and config.negatives == "normal" and kind != NORMAL:
            rejections.append(Rejection("not_selected", row=row, item=image))
            continue
        source = nih.get(image, "")
        patient = patient_id(source.split("_")[0]) if source else image
        split = ""
        if nih_test:
            left = splits.draw(config.seed, patient) < 0.1
            split = "test" if source in nih_test else "validation" if left else "train"
        path = files.get(image) or f"{image}.dcm"
        items.append(
            {
                "row": row,
                "image": path,
                "path": str(root / path),
                "image_id": image,
                "study_id": image,
                "patient_id": patient,
                "split": split,
                "view": "" if path.endswith(".dcm") else "FRONTAL",
                "view_from_header": path.endswith(".dcm"),
                "labels": states(target, kind),
                "own_labels": {name: int(kind == name) for name in (NORMAL, ABNORMAL, OPACITY)} if kind else {},
                "boxes": boxes,
                "facts": [f"class {kind or 'unknown'}", "NIH patient known" if source else "NIH patient unknown"],
            }
        )
    rule = "official NIH test list, a tenth of the other patients validation" if nih_test else ""
    return common.finish_plan(items, rejections, config, tables=tables, split_rule=rule)


def read_boxes(table: Table, rejections: list[Rejection]) -> dict[str, tuple[int, int, list[dict[str, Any]]]]:
    """Image id -> (its first row, target 0 or 1, boxes); a row with a bad box or target becomes a rejection."""
    found: dict[str, tuple[int, int, list[dict[str, Any]]]] = {}
    for number, row in table:
        image = row["patientId"].strip()
        try:
            target = int(float(row["Target"]))
            boxes = []
            if target:
                x, y, width, height = (float(row[name]) for name in ("x", "y", "width", "height"))
                edges = [min(max(edge / BOX_FRAME, 0.0), 1.0) for edge in (y, x, y + height, x + width)]
                boxes = [{"box": edges, "finding": OPACITY}]
        except ValueError:
            rejections.append(Rejection("bad_box", row=number, item=image))
            continue
        if image in found:
            found[image][2].extend(boxes)
        else:
            found[image] = (number, target, boxes)
    return found


def read_mapping(path: Path) -> dict[str, str]:
    """RSNA id -> NIH file name. Raises: ValueError naming the fields that an entry lacks."""
    if path.suffix == ".json":
        entries = json.loads(path.read_text(encoding="utf-8"))
        lacking = {"img_id", "subset_img_id"} - set(entries[0] if entries else ())
        if lacking:
            raise ValueError(f"{path}: entries lack {', '.join(sorted(lacking))}; they have {', '.join(entries[0])}.")
    else:
        entries = [row for _, row in Table(path, ("img_id", "subset_img_id"))]
    return {str(entry["subset_img_id"]): str(entry["img_id"]) for entry in entries if entry["subset_img_id"]}


def states(target: int, kind: str) -> dict[str, int]:
    """CheXpert states of an image; see `LABELS`. Without its class, a negative may be either of the two."""
    own = {OPACITY: PRESENT if target else ABSENT}
    if kind:
        own |= {NORMAL: PRESENT if kind == NORMAL else ABSENT}
    if kind == ABNORMAL or not (kind or target):
        own |= {ABNORMAL: PRESENT}
    return translate(own, LABELS)


def make_examples(item: dict[str, Any], config: RsnaConfig) -> list[staging.Example]:
    """The record of one image. Raises: Rejection."""
    return film_records.make_record(item, config)


describe = common.describe


class RsnaPneumonia(common.LocalBuilder):
    """TFDS builder; run it through `python -m medvlp_jax.prepare rsna_pneumonia`."""

    ABOUT = "RSNA pneumonia challenge images with opacity boxes."
    plan, make_examples = staticmethod(plan), staticmethod(make_examples)
