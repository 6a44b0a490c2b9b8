"""Label files that labelers write (CheXpert, NegBio, CheXbert, your own): one row per study or image, columns by name.

    file = read_label_file(Path("mimic-cxr-2.0.0-negbio.csv.gz"))
    facts = attach(items, file)          # every item gets its "labels"

Whatever of a file is not used is counted: columns, repeated rows, rows of studies that are not here, images without a
row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medvlp_jax.data.labels import CHEXPERT_LABELS, NOT_MENTIONED, parse_state, position
from medvlp_jax.data.packed import Packed
from medvlp_jax.data.tables import IMAGE_COLUMNS, ImageIndex, Table

STUDY_COLUMNS = ("study_id", "study", "Study")
IDS = (*STUDY_COLUMNS, *IMAGE_COLUMNS, "subject_id", "patient_id", "split")
"""Columns that hold no label and need no mention."""


@dataclasses.dataclass
class LabelFile:
    """What a label file says. states: id -> {CheXpert name: state} of what it mentions.

    key: the column with the ids. unread: columns that name none of the fourteen. lacking: names without a column.
    repeated: rows of an id that had one before (the first counts).
    """

    table: Table
    key: str
    states: dict[str, dict[str, int]]
    unread: list[str]
    lacking: list[str]
    repeated: int

    @property
    def by_study(self) -> bool:
        """Are its ids those of studies?"""
        return self.key in STUDY_COLUMNS


def read_label_file(path: Path, *, complete: bool = False) -> LabelFile:
    """Reads a CSV or TSV file (also .gz) of labels 1, 0, -1 or blank.

    Args: complete: every one of the fourteen needs a column, as in the published files.
    Raises: ValueError naming the file and what it lacks, the two columns that mean one observation, or the row of a
      value that is no state.
    """
    if not path.is_file():
        raise ValueError(f"The label file {path} does not exist.")
    columns = Table(path, ()).columns
    key = next((name for name in (*STUDY_COLUMNS, *IMAGE_COLUMNS) if name in columns), None)
    if key is None:
        known = ", ".join((*STUDY_COLUMNS, *IMAGE_COLUMNS))
        raise ValueError(f"{path} has no column of ids: one of {known}. Its columns: {', '.join(columns)}.")
    named: dict[str, str] = {}
    unread = []
    for column in columns:
        try:
            name = CHEXPERT_LABELS[position(column)]
        except ValueError:
            unread += [column] if column not in IDS else []
            continue
        if name in named:
            raise ValueError(f"{path}: the columns {named[name]!r} and {column!r} both mean {name}. Leave one out.")
        named[name] = column
    lacking = [name for name in CHEXPERT_LABELS if name not in named]
    if not named or (complete and lacking):
        raise ValueError(f"{path} has no column for {', '.join(lacking)}. Its columns: {', '.join(columns)}.")
    table = Table(path, (key, *named.values()))
    states: dict[str, dict[str, int]] = {}
    same: dict[tuple[tuple[str, int], ...], dict[str, int]] = {}  # rows share one dict: few differ
    repeated = 0
    for number, row in table:
        try:
            of_row = {name: parse_state(row[column]) for name, column in named.items()}
        except ValueError as error:
            raise ValueError(f"{path}, row {number}: {error}") from None
        identity = row[key].strip()
        if key in STUDY_COLUMNS:
            identity = plain_study(identity)
        repeated += identity in states
        mentioned = {name: state for name, state in of_row.items() if state != NOT_MENTIONED}
        states.setdefault(identity, same.setdefault(tuple(mentioned.items()), mentioned))
    return LabelFile(table, key, states, unread, lacking, repeated)


def plain_study(identity: str) -> str:
    """A study id without the s before its digits: MIMIC-CXR has both forms."""
    identity = identity.strip()
    return identity[1:] if identity[:1] == "s" and identity[1:].isdigit() else identity


def attach(items: Sequence[dict[str, Any]], file: LabelFile) -> dict[str, Any]:
    """Gives every item the labels of its study or image, {} without a row; returns what was not used, zeros left out.

    Args: items: a list or a `Packed`, with `study_id` and `image_id`; one that says `"keep_labels": True` keeps those
      it has.
    """
    index = None if file.by_study else ImageIndex(file.states)
    used: set[str] = set()
    without = 0
    for item in items.edit() if isinstance(items, Packed) else items:
        if index is None:
            key = plain_study(item["study_id"])
            key = key if key in file.states else None
        else:
            key = index.find(item["image_id"])
        without += key is None
        if key is not None:
            used.add(key)
        if not item.get("keep_labels"):
            item["labels"] = file.states[key] if key is not None else {}
    facts = {
        "by": file.key,
        "rows": len(file.states),
        "columns not read": file.unread,
        "labels it lacks": file.lacking,
        "repeated rows": file.repeated,
        "rows of nothing here": len(file.states) - len(used),
        "images without a row": without,
    }
    return {name: value for name, value in facts.items() if value}


def lines(files: dict[str, dict[str, Any]]) -> list[str]:
    """What `attach` returned, by file name, in words. Columns are named, ids are only counted."""
    written = []
    for name, facts in files.items():
        parts = [f"{fact} {', '.join(v) if isinstance(v, list) else v}" for fact, v in facts.items()]
        written.append(f"Labels of {name}: {'; '.join(parts)}")
    return written
