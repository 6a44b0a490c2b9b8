"""CheXpert v1, full size or small: 14 labels with uncertainty, the official validation set, a seeded 5x200 set.

    python -m medvlp_jax.prepare chexpert --root /data/CheXpert-v1.0-small

Access, counts and settings: README.md beside this file. CheXpert v1 has no reports.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from medvlp_jax.data import demographics, film_records, splits, staging
from medvlp_jax.data.labels import CHEXPERT_LABELS, NOT_MENTIONED, parse_state
from medvlp_jax.data.packed import Packed
from medvlp_jax.data.staging import Plan, Rejection
from medvlp_jax.data.tables import Table, find_file, find_optional
from tfds_builders import common

WHAT = "the folder CheXpert-v1.0 or CheXpert-v1.0-small, with train.csv, valid.csv, train/ and valid/"


@dataclasses.dataclass(eq=False)
class ChexpertConfig(common.LocalConfig):
    """Settings of CheXpert."""

    per_class: int = 200
    """Frontal training images of each of the five classes that become the split test_5x200, one per patient; their
    patients leave train. 0: none."""
    train_table: str = ""
    """Table of the training images in the layout of train.csv, such as a train_visualCheXbert.csv; default: train.csv
    under --root."""
    test_labels: str = ""
    """groundtruth.csv of the 500 test studies; default: the one under --root, if any."""


CONFIG = ChexpertConfig(name="default")


def plan(config: ChexpertConfig) -> Plan:
    """One work item per row of train.csv and valid.csv, and per image of the test studies where they are.

    Raises: ValueError for a table or column that is not there.
    """
    root = common.root_of(config, WHAT)
    items = Packed()
    rejections: list[Rejection] = []
    used = []
    for name, split in (("valid.csv", "validation"), ("train.csv", "train")):
        path = find_optional(root, (name, f"{name}.gz"))
        if path is None and split == "validation":
            continue
        if split == "train" and config.train_table:
            path = find_file(Path(config.train_table).expanduser().parent, (Path(config.train_table).name,), "table")
        path = path or find_file(root, ("train.csv", "train.csv.gz"), "label table train.csv")
        table = Table(path, ("Path", "Frontal/Lateral", "AP/PA", *CHEXPERT_LABELS), ("Sex", "Age"))
        used.append(table)
        for number, row in table:
            try:
                items.append(_item(root, number, row, split))
            except Rejection as rejection:
                rejections.append(rejection)
    truth = Path(config.test_labels) if config.test_labels else find_optional(root, ("groundtruth.csv",))
    if truth is not None:
        table = Table(truth, ("Study", *CHEXPERT_LABELS))
        used.append(table)
        for number, row in table:
            try:
                for item in _test_items(root, number, row):
                    items.append(item)
            except Rejection as rejection:
                rejections.append(rejection)
    if config.per_class:
        items, out = splits.take_five_by_200(items, config.per_class, config.seed)
        rejections += out
    rule = "official train and valid" + (
        f"; {splits.FIVE_BY_200} drawn with seed {config.seed}" if config.per_class else ""
    )
    return common.finish_plan(items, rejections, config, tables=used, split_rule=rule)


def _item(root: Path, number: int, row: dict[str, str], split: str) -> dict[str, Any]:
    """One row. The first folder of `Path` names the edition and is not looked at. Raises: Rejection."""
    relative = row["Path"].strip().partition("/")[2]
    parts = relative.split("/")
    if len(parts) != 4 or not parts[1].startswith("patient"):
        raise Rejection("bad_path", row=number, item=row["Path"])
    lateral = row["Frontal/Lateral"].strip() == "Lateral"
    view = "LATERAL" if lateral else common.view_name(row["AP/PA"])
    try:
        states = {name: parse_state(row[name]) for name in CHEXPERT_LABELS}
    except ValueError as error:
        raise Rejection("bad_label", row=number, item=relative, detail=str(error)) from None
    return {
        "row": number,
        "image": relative,
        "path": str(root / relative),
        "image_id": relative.rpartition(".")[0],
        "study_id": "/".join(parts[:3]),
        "patient_id": f"chexpert-{parts[1]}",  # without the folder, so that a patient of two of them would show
        "split": split,
        # LL and RL stand beside 17 frontal images: frontal, the projection unknown.
        "view": view if lateral or view in ("AP", "PA") else "FRONTAL",
        "labels": {name: state for name, state in states.items() if state != NOT_MENTIONED},
        # Three rows of a set of adults have the age 0.
        **demographics.person(row["Age"] if row.get("Age", "0").strip() not in ("0", "0.0") else None, row.get("Sex")),
    }


def _test_items(root: Path, number: int, row: dict[str, str]) -> list[dict[str, Any]]:
    """The images of one test study: every view in its folder. Raises: Rejection."""
    study = row["Study"].strip().partition("/")[2]
    if common.leads_out(study):
        raise Rejection("path_outside_root", row=number, item=study)
    paths = sorted((root / study).glob("*.jpg")) or [root / study / "view1_frontal.jpg"]
    items = []
    for path in paths:
        side = "Lateral" if "lateral" in path.name else "Frontal"
        cells = {**row, "Path": f"x/{study}/{path.name}", "Frontal/Lateral": side, "AP/PA": ""}
        items.append(_item(root, number, cells, "test"))
    return items


def make_examples(item: dict[str, Any], config: ChexpertConfig) -> list[staging.Example]:
    """The record of one image. Raises: Rejection."""
    return film_records.make_record(item, config)


describe = common.describe


class Chexpert(common.LocalBuilder):
    """TFDS builder; run it through `python -m medvlp_jax.prepare chexpert`."""

    ABOUT = "CheXpert images with fourteen labels."
    plan, make_examples = staticmethod(plan), staticmethod(make_examples)
