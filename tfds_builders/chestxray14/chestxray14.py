"""NIH ChestX-ray14: 14 labels, 984 boxes, the official test list.

    python -m medvlp_jax.prepare chestxray14 --root /data/nih

Access, counts and settings: README.md beside this file.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from medvlp_jax.data import demographics, film_records, splits, staging
from medvlp_jax.data.label_translations import KIND, NONE, SAME, Row, names_of, same, translate
from medvlp_jax.data.labels import ABSENT, PRESENT
from medvlp_jax.data.packed import Packed
from medvlp_jax.data.staging import Plan, Rejection
from medvlp_jax.data.tables import Table, csv_rows, find_file, find_optional, index_files, read_text
from tfds_builders import common

WHAT = "a folder with Data_Entry_2017_v2020.csv, train_val_list.txt, test_list.txt, BBox_List_2017.csv and the images"
FINDINGS = (
    *("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia"),
    *("Infiltration", "Mass", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax"),
)
LABELS = (
    Row(("No Finding",), SAME, "No Finding", "none of the fourteen findings of the set; others are not looked for"),
    *same(("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pneumonia", "Pneumothorax")),
    Row(("Effusion",), SAME, "Pleural Effusion", "the set's name for it"),
    Row(("Mass", "Nodule"), SAME, "Lung Lesion", "what the name covers first of all; absent when both are"),
    Row(("Pleural_Thickening",), KIND, "Pleural Other", "the labeler's first phrase for it"),
    Row(
        ("Infiltration", "Emphysema", "Fibrosis", "Hernia"), NONE, "", "no observation of the fourteen covers just this"
    ),
)
BOX_NAMES = {own: name for own, name in names_of(LABELS).items() if own != "Pleural_Thickening"}
OTHER_SPELLINGS = {"Infiltrate": "Infiltration", "Pleural Thickening": "Pleural_Thickening"}
BOX_FRAME = 1024.0
"""Boxes are in pixels of the 1024 x 1024 images, whatever the size of the files at hand."""


@dataclasses.dataclass(eq=False)
class NihConfig(common.LocalConfig):
    """Settings of ChestX-ray14."""

    official_split: bool = True
    """test_list.txt is test; False draws splits by patient (--fractions)."""
    validation_share: float = 0.1
    """Share of the patients of train_val_list.txt that become validation."""


CONFIG = NihConfig(name="default")


def patient_id(number: str | int) -> str:
    """The raw id of an NIH patient, the same in every set made of NIH images."""
    return f"nih-{int(number):08d}"


def plan(config: NihConfig) -> Plan:
    """One work item per row of the label table. Raises: ValueError for a file or column that is not there."""
    root = common.root_of(config, WHAT)
    path = find_file(root, ("Data_Entry_2017*.csv", "Data_Entry_2017*.csv.gz"), "label table Data_Entry_2017_v2020.csv")
    table = Table(
        path,
        ("Image Index", "Finding Labels", "Patient ID", "View Position"),
        ("Patient Age", "Patient Gender"),
    )
    boxes = read_boxes(find_optional(root, ("BBox_List_2017.csv*",)))
    test = set()
    if config.official_split:
        advice = "test_list.txt (or add --official_split false)"
        test = set(read_text(find_file(root, ("test_list.txt", "*/test_list.txt"), advice))[0].split())
    files = index_files(root, (".png", ".jpg", ".jpeg"))
    items, rejections = Packed(), []
    for number, row in table:
        name = row["Image Index"].strip()
        try:
            own = own_labels(row["Finding Labels"])
        except Rejection as rejection:
            rejections.append(Rejection(rejection.reason, row=number, item=name, detail=rejection.detail))
            continue
        patient = patient_id(row["Patient ID"])
        split = ""
        if config.official_split:
            validation = splits.draw(config.seed, patient) < config.validation_share
            split = "test" if name in test else "validation" if validation else "train"
        path = files.get(name) or files.get(name.replace(".png", ".jpg")) or name
        items.append(
            {
                "row": number,
                "image": path,
                "path": str(root / path),
                "image_id": name.rpartition(".")[0],
                "study_id": name.rpartition(".")[0],
                "patient_id": patient,
                "split": split,
                "view": common.view_name(row["View Position"]),
                **demographics.person(row.get("Patient Age"), row.get("Patient Gender")),
                "labels": translate(own, LABELS),
                "own_labels": own,
                "boxes": boxes.get(name, []),
            }
        )
    rule = f"official test list, {config.validation_share:g} of the other patients validation, seed {config.seed}"
    return common.finish_plan(
        items, rejections, config, tables=[table], split_rule=rule if config.official_split else ""
    )


def own_labels(cell: str) -> dict[str, int]:
    """ "A|B" or "No Finding" -> the states of the fourteen findings and of No Finding.

    Raises: Rejection "bad_label" for a name that is none of them.
    """
    names = [OTHER_SPELLINGS.get(name.strip(), name.strip()) for name in cell.split("|")]
    unknown = [name for name in names if name not in FINDINGS and name != "No Finding"]
    if unknown:
        raise Rejection("bad_label", detail=", ".join(unknown))
    return {name: PRESENT if name in names else ABSENT for name in ("No Finding", *FINDINGS)}


def read_boxes(path: Path | None) -> dict[str, list[dict[str, Any]]]:
    """Image file name -> its boxes, in 0..1 and under CheXpert names where there is one.

    The header of the table has commas inside a name, so cells go by place: image, finding, x, y, width, height.
    Raises: ValueError for a table of another shape.
    """
    if path is None:
        return {}
    header, rows = csv_rows(read_text(path)[0])
    if [name.split(" [")[0] for name in header[:3]] != ["Image Index", "Finding Label", "Bbox"]:
        raise ValueError(
            f"{path} starts with {', '.join(header)}; expected Image Index, Finding Label, Bbox [x,y,w,h]."
        )
    boxes: dict[str, list[dict[str, Any]]] = {}
    for cells in rows:
        name, finding, *numbers = cells[:6]
        x, y, width, height = (float(number) for number in numbers)
        edges = [edge / BOX_FRAME for edge in (y, x, y + height, x + width)]
        finding = OTHER_SPELLINGS.get(finding.strip(), finding.strip())
        box = {"box": [min(max(edge, 0.0), 1.0) for edge in edges], "finding": BOX_NAMES.get(finding, finding)}
        boxes.setdefault(name.strip(), []).append(box)
    return boxes


def make_examples(item: dict[str, Any], config: NihConfig) -> list[staging.Example]:
    """The record of one image. Raises: Rejection."""
    return film_records.make_record(item, config)


describe = common.describe


class Chestxray14(common.LocalBuilder):
    """TFDS builder; run it through `python -m medvlp_jax.prepare chestxray14`."""

    ABOUT = "NIH ChestX-ray14 images with labels and boxes."
    plan, make_examples = staticmethod(plan), staticmethod(make_examples)
