"""A JSONL or CSV manifest -> rows with the project's field names, and the reasons why a row cannot be used."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medvlp_jax.data import archives, tables
from medvlp_jax.data.labels import CHEXPERT_LABELS, label_states, label_vector, parse_state, position
from medvlp_jax.data.staging import Rejection

FIELDS: tuple[str, ...] = (
    *("image", "findings", "impression", "report", "report_file"),
    *("patient_id", "study_id", "image_id", "split", "view", "age", "sex", "boxes"),
)
"""Fields a column can be mapped to, besides `labels.<name>` for the fourteen CheXpert names."""


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The rows of a manifest, each with its number (the first record is row 1), and what was wrong with the others."""

    columns: list[str]
    rows: list[tuple[int, dict[str, Any]]]
    rejections: list[Rejection]
    sha256: str


def read_manifest(path: Path, limit: int = 0) -> Manifest:
    """Reads .jsonl, .csv or .tsv, also with .gz behind; quoted CSV fields may hold commas and line breaks.

    Args: limit: rows read, 0 for all.
    Raises: ValueError when the file is absent, of another kind, not UTF-8, or empty.
    """
    if not path.is_file():
        raise ValueError(f"The manifest {path} does not exist. Give its path with --manifest.")
    archives.refuse(path, "--manifest")
    kind = path.suffixes[-2] if path.suffix == ".gz" and len(path.suffixes) > 1 else path.suffix
    text, digest = tables.read_text(path)
    if kind not in (".jsonl", ".csv", ".tsv"):
        raise ValueError(f"The manifest {path} must end in .jsonl, .csv or .tsv (or one of these and .gz).")
    entries = _json_rows(text) if kind == ".jsonl" else _csv_rows(text, "\t" if kind == ".tsv" else ",")
    columns: dict[str, None] = {}
    rows, rejections = [], []
    for number, entry in enumerate(entries, start=1):
        if limit and number > limit:
            break
        if isinstance(entry, str):
            rejections.append(Rejection(entry, row=number))
            continue
        columns |= dict.fromkeys(entry)
        rows.append((number, entry))
    if not rows:
        raise ValueError(f"The manifest {path} holds no readable row.")
    return Manifest(list(columns), rows, rejections, digest)


def _json_rows(text: str) -> Iterator[dict[str, Any] | str]:
    for line in text.splitlines():
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            entry = None
        yield entry if isinstance(entry, dict) else "bad_json"


def _csv_rows(text: str, delimiter: str) -> Iterator[dict[str, Any] | str]:
    header, rows = tables.csv_rows(text, delimiter)
    for cells in rows:
        yield dict(zip(header, cells, strict=True)) if len(cells) == len(header) else "wrong_number_of_fields"


def column_mapping(text: str, columns: list[str]) -> dict[str, str]:
    """Field -> column. Fields that `text` does not name take the column of the same name where there is one.

    Args: text: "image=path,findings=FINDINGS,study_id=,labels.Pneumonia=pneumonia"; nothing behind = means no column.
    Raises: ValueError for an unknown field, or a column that the manifest lacks (listing those it has).
    """
    mapping = {field: field for field in FIELDS if field in columns}
    same_name = {name.lower(): name for name in columns}
    for label in CHEXPERT_LABELS:
        if label.lower() in same_name:
            mapping[f"labels.{label}"] = same_name[label.lower()]
    for pair in filter(None, (part.strip() for part in text.split(","))):
        field, equals, column = (word.strip() for word in pair.partition("="))
        if not equals:
            raise ValueError(f"--columns {pair!r} is not of the form field=column.")
        if field.startswith("labels."):
            field = f"labels.{CHEXPERT_LABELS[position(field.removeprefix('labels.'))]}"
        elif field not in FIELDS:
            raise ValueError(
                f"--columns names the unknown field {field!r}. Fields: {', '.join(FIELDS)}, labels.<name>."
            )
        if not column:
            mapping.pop(field, None)
        elif column not in columns:
            raise ValueError(
                f"--columns maps {field} to {column!r}, which the manifest lacks. Its columns: {', '.join(columns)}."
            )
        else:
            mapping[field] = column
    if "image" not in mapping:
        raise ValueError(f"No column holds the image path: add image=<column>. Columns: {', '.join(columns)}.")
    return mapping


def row_filter(text: str, columns: list[str]) -> dict[str, set[str]]:
    """ "view=PA|AP,license=cc-by" -> column -> accepted values.

    Raises: ValueError for a column that the manifest lacks.
    """
    accepted = {}
    for pair in filter(None, (part.strip() for part in text.split(","))):
        column, equals, values = (word.strip() for word in pair.partition("="))
        if not equals or column not in columns:
            raise ValueError(f"--where {pair!r} is not column=value. Columns: {', '.join(columns)}.")
        accepted[column] = {value.strip() for value in values.split("|")}
    return accepted


def cell(row: dict[str, Any], column: str | None) -> str:
    """A cell as text: "" for no column, null or NaN; whole floats lose their ".0".

    Raises: ValueError when the cell holds a list or an object.
    """
    value = row.get(column) if column else None
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, list | dict):
        raise ValueError(f"column {column!r} holds a {type(value).__name__}")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value)


def is_nan(row: dict[str, Any], column: str | None) -> bool:
    """True for a NaN or the text "nan", which is what tables written by other programs hold for a missing cell."""
    value = row.get(column) if column else None
    return (isinstance(value, float) and math.isnan(value)) or str(value).strip().lower() == "nan"


def row_labels(row: dict[str, Any], mapping: dict[str, str]) -> dict[str, int]:
    """The label states of a row by CheXpert name, blanks left out.

    Raises: ValueError naming the column of a value that is no state.
    """
    states = {}
    for field, column in mapping.items():
        if field.startswith("labels."):
            try:
                states[field.removeprefix("labels.")] = parse_state(row.get(column))
            except ValueError:
                raise ValueError(f"column {column!r}") from None
    return label_states(label_vector(states))


def row_boxes(row: dict[str, Any], column: str | None) -> list[dict[str, Any]]:
    """The boxes of a row, [{"box", "finding"}], with CheXpert names: a list, or one as JSON text.

    Raises: ValueError saying what is wrong with the first bad one.
    """
    value = row.get(column) if column else None
    if value is None or is_nan(row, column) or (isinstance(value, str) and not value.strip()):
        return []
    if isinstance(value, str):
        value = json.loads(value)  # its error is a ValueError
    if not isinstance(value, list):
        raise ValueError(f"column {column!r} holds a {type(value).__name__}, not a list of boxes")
    return [_box(entry) for entry in value]


def _box(entry: Any) -> dict[str, Any]:
    if not isinstance(entry, dict) or not {"box", "finding"} <= entry.keys():
        raise ValueError('a box is not {"box": [ymin, xmin, ymax, xmax], "finding": name}')
    try:
        ymin, xmin, ymax, xmax = box = [float(edge) for edge in entry["box"]]
    except (TypeError, ValueError):
        raise ValueError("a box has no four numbers") from None
    if not (0 <= ymin < ymax <= 1 and 0 <= xmin < xmax <= 1):
        raise ValueError("a box is not ymin < ymax, xmin < xmax in 0..1 of the image")
    try:
        return {"box": box, "finding": CHEXPERT_LABELS[position(str(entry["finding"]))]}
    except ValueError:  # which would repeat the cell, and that may be text
        raise ValueError("the finding of a box is no CheXpert name") from None
