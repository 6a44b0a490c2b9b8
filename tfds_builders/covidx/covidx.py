"""COVIDx of a stated version: label lists with patient, file, class and source of every image.

    python -m medvlp_jax.prepare covidx --root /data/covidx --version_name 9A

Access, counts and settings: README.md beside this file.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from medvlp_jax.data import film_records, splits, staging
from medvlp_jax.data.label_translations import KIND, NONE, Row, translate
from medvlp_jax.data.labels import ABSENT, PRESENT
from medvlp_jax.data.staging import Plan, Rejection
from medvlp_jax.data.tables import find_file, find_optional, index_files, read_text
from tfds_builders import common

WHAT = "a folder with the label lists (train_COVIDx9A.txt and test_COVIDx9A.txt, or train.txt, val.txt, test.txt)"
CLASSES = {name.lower(): name for name in ("normal", "pneumonia", "COVID-19", "positive", "negative")}
LABELS = (
    Row(("normal",), KIND, "No Finding", "said of the whole image"),
    Row(("pneumonia",), KIND, "Pneumonia", "the same word"),
    Row(("COVID-19", "positive", "negative"), NONE, "", "a diagnosis of the patient; what the image shows is not said"),
)


@dataclasses.dataclass(eq=False)
class CovidxConfig(common.LocalConfig):
    """Settings of COVIDx."""

    version_name: str = ""
    """Version in the names of the lists, e.g. 9A for train_COVIDx9A.txt; "" for train.txt, val.txt and test.txt."""
    validation_share: float = 0.2
    """Share of the patients of the training list that become validation, when there is no validation list."""
    split_conflict: str = "first"
    """A patient in two lists keeps its images of test, else of validation."""


CONFIG = CovidxConfig(name="default")


def plan(config: CovidxConfig) -> Plan:
    """One work item per line of the lists. Raises: ValueError for a list that is not there."""
    root = common.root_of(config, WHAT)
    stem = f"{{}}_COVIDx{config.version_name}.txt" if config.version_name else "{}.txt"
    lists: dict[str, Path | None] = {"test": None, "val": None, "train": None}
    for part in lists:
        names = [f"{folder}{stem.format(part)}" for folder in ("", "labels/")]
        lists[part] = find_optional(root, names) if part == "val" else find_file(root, names, f"{part} list")
    files = {
        part: index_files(root / part if (root / part).is_dir() else root, (".png", ".jpg", ".jpeg")) for part in lists
    }
    items: list[dict[str, Any]] = []
    rejections: list[Rejection] = []
    checksums = {}
    for part, path in lists.items():
        if path is None:
            continue
        text, checksums[path.name] = read_text(path)
        for number, line in enumerate(filter(str.strip, text.splitlines()), start=1):
            try:
                patient, name, kind, source = parse_line(line)
            except Rejection as rejection:
                rejections.append(Rejection(rejection.reason, row=number, item=path.name, detail=rejection.detail))
                continue
            split = {"val": "validation"}.get(part, part)
            if part == "train" and lists["val"] is None:
                left = splits.draw(config.seed, patient) < config.validation_share
                split = "validation" if left else "train"
            place = files[part].get(name)
            base = root / part if (root / part).is_dir() else root
            items.append(
                {
                    "row": number,
                    "image": f"{part}/{name}",
                    "path": str(base / (place or name)),
                    "image_id": f"{part}/{name}",
                    "study_id": f"{part}/{name}",
                    "patient_id": patient,
                    "split": split,
                    "view": "",
                    "labels": translate({kind: PRESENT}, LABELS),
                    "own_labels": {name: PRESENT if name == kind else ABSENT for name in CLASSES.values()},
                    "facts": [f"class {kind}", f"source {source}"],
                }
            )
    present = {name for item in items for name, state in item["own_labels"].items() if state == PRESENT}
    for item in items:  # only the classes that this version has
        item["own_labels"] = {name: state for name, state in item["own_labels"].items() if name in present}
    rule = f"official lists of version {config.version_name or 'in the folder'}"
    if lists["val"] is None:
        rule += f", {config.validation_share:g} of the training patients validation, seed {config.seed}"
    return common.finish_plan(items, rejections, config, split_rule=rule, provenance={"tables": checksums})


def parse_line(line: str) -> tuple[str, str, str, str]:
    """ "patient file class source" -> (patient within its source, file, class, source); files may hold blanks.

    Some lists up to version 7A leave the source out; it is "unknown" then.

    Raises: Rejection "wrong_number_of_fields" or "bad_label".
    """
    words = line.split()
    if words[-1].lower() in CLASSES:
        words.append("unknown")
    if len(words) < 4:
        raise Rejection("wrong_number_of_fields", detail=f"{len(words)} fields")
    patient, *name, kind, source = words
    if kind.lower() not in CLASSES:
        raise Rejection("bad_label", detail=kind)
    return f"{source}/{patient}", " ".join(name), CLASSES[kind.lower()], source


def make_examples(item: dict[str, Any], config: CovidxConfig) -> list[staging.Example]:
    """The record of one image. Raises: Rejection."""
    return film_records.make_record(item, config)


describe = common.describe


class Covidx(common.LocalBuilder):
    """TFDS builder; run it through `python -m medvlp_jax.prepare covidx`."""

    ABOUT = "COVIDx images with their class."
    plan, make_examples = staticmethod(plan), staticmethod(make_examples)
