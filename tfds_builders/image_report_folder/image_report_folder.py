"""Your own images and reports: a folder with a JSONL or CSV manifest (DICOM, PNG, JPEG).

    python -m medvlp_jax.prepare image_report_folder --name ours --manifest /data/ours/studies.csv \\
        --columns "image=path,report=report_text,patient_id=pid,split=fold"

Every row of the manifest becomes one record or one line of `rejected.csv`. See README.md beside this file.
"""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medvlp_jax.data import demographics, film_records, records, sections, splits, staging
from medvlp_jax.data.staging import Plan, Rejection
from tfds_builders import common
from tfds_builders.image_report_folder import manifest as manifests


@dataclasses.dataclass(eq=False)
class FolderConfig(common.LocalConfig):
    """Settings of one folder; each is a command-line option of `medvlp_jax.prepare`, as those of every local set."""

    manifest: str = ""
    """Path of the .jsonl, .csv or .tsv file."""
    root: str = ""
    """Folder that relative image paths start from; default: the manifest's folder."""
    columns: str = ""
    """field=column pairs, e.g. "image=path,findings=FINDINGS"; see `manifest.column_mapping`."""
    where: str = ""
    """Rows to use: column=value pairs with | between alternatives, e.g. "view=PA|AP,license=cc-by"."""
    sections: str = "loose"
    """How a `report` column is cut when a row has neither findings nor impression; see `sections.MODES`."""
    last_paragraph: bool = False
    """Use the last paragraph as findings when a report has neither findings nor impression."""
    empty_report: str = "reject"
    """"reject" or "keep" rows without findings and impression."""
    limit: int = 0
    """Rows read, 0 for all."""


CONFIG = FolderConfig(name="default")
_CHOICES = {"sections": sections.MODES, "empty_report": ("reject", "keep")}


def plan(config: FolderConfig) -> Plan:
    """Reads the manifest: one work item per usable row, with its text, labels, ids and the state of its image file.

    Raises: ValueError for settings or columns that do not exist, and for a patient in two splits (see
    `split_conflict`).
    """
    for setting, choices in _CHOICES.items():
        if getattr(config, setting) not in choices:
            raise ValueError(f"{setting}={getattr(config, setting)!r}; choices: {', '.join(map(str, choices))}.")
    common.check_settings(config)
    if not config.manifest:
        raise ValueError("No manifest. Give the path of a .jsonl or .csv file with --manifest.")
    path = Path(config.manifest)
    manifest = manifests.read_manifest(path, config.limit)
    mapping = manifests.column_mapping(config.columns, manifest.columns)
    wanted = manifests.row_filter(config.where, manifest.columns)
    root = Path(config.root) if config.root else path.parent
    items, rejections = [], list(manifest.rejections)
    rules: collections.Counter[str] = collections.Counter()
    views: collections.Counter[str] = collections.Counter()
    for number, row in manifest.rows:
        try:
            if any(manifests.cell(row, column).strip() not in values for column, values in wanted.items()):
                raise Rejection("not_selected", row=number)
            items.append(_item(number, row, mapping, root, config, rules, views))
        except Rejection as rejection:
            rejections.append(rejection)
    provenance = {
        "manifest_sha256": manifest.sha256,
        "rows": len(manifest.rows) + len(manifest.rejections),
        "columns": mapping,
        "columns_not_read": [name for name in manifest.columns if name not in {*mapping.values(), *wanted}],
        "section_rules": dict(sorted(rules.items())),
        "views_not_understood": sum(views.values()),
    }
    split_rule = f"column {mapping['split']!r}" if "split" in mapping else ""
    return common.finish_plan(items, rejections, config, split_rule=split_rule, provenance=provenance, anywhere=True)


def _item(
    number: int,
    row: dict[str, Any],
    mapping: dict[str, str],
    root: Path,
    config: FolderConfig,
    rules: collections.Counter[str],
    views: collections.Counter[str],
) -> dict[str, Any]:
    """One work item. Raises: Rejection."""
    try:
        cells = {field: manifests.cell(row, mapping.get(field)) for field in manifests.FIELDS if field != "boxes"}
    except ValueError as error:
        raise Rejection("bad_value", row=number, detail=str(error)) from None
    image = cells["image"].strip()
    if not image:
        raise Rejection("no_image_path", row=number)
    try:
        labels = manifests.row_labels(row, mapping)
    except ValueError as error:
        raise Rejection("bad_label", row=number, item=image, detail=str(error)) from None
    try:
        boxes = manifests.row_boxes(row, mapping.get("boxes"))
    except ValueError as error:
        raise Rejection("bad_box", row=number, item=image, detail=str(error)) from None
    split = splits.SPLIT_NAMES.get(cells["split"].strip().lower(), "")
    if "split" in mapping and not split:
        raise Rejection("bad_split", row=number, item=image)
    image_id = cells["image_id"].strip() or image
    patient_id = cells["patient_id"].strip()
    if "patient_id" in mapping and not patient_id:
        raise Rejection("missing_patient_id", row=number, item=image)
    view = common.view_name(cells["view"])
    views["not understood"] += bool(cells["view"].strip()) and not view
    text = _text(number, row, cells, mapping, root, config, rules)
    return {
        "row": number,
        "image": image,
        "path": str(root / image),
        "image_id": image_id,
        "study_id": cells["study_id"].strip() or image_id,
        "patient_id": patient_id or cells["study_id"].strip() or image_id,
        "split": split,
        "view": view,
        **demographics.person(cells["age"], cells["sex"]),
        "labels": labels,
        "boxes": boxes,
        **text,
    }


def _text(
    number: int,
    row: dict[str, Any],
    cells: dict[str, str],
    mapping: dict[str, str],
    root: Path,
    config: FolderConfig,
    rules: collections.Counter[str],
) -> dict[str, str]:
    report = cells["report"]
    if cells["report_file"].strip():
        try:
            report = (root / cells["report_file"].strip()).read_text("utf-8", errors="replace")
        except OSError:
            raise Rejection("missing_report_file", row=number, item=cells["image"]) from None
    report = "" if sections.is_missing(report) else report
    both = sections.apply_policy(cells["findings"], cells["impression"], "mask")
    if report and not (both["has_findings"] or both["has_impression"]):
        parsed = sections.parse_sections(report, config.sections)
        rules.update(sections.count_rules(parsed))
        both = sections.choose(parsed, "last_paragraph" if config.last_paragraph else "mask")
        whole = [section for section in parsed if section.name == "full report"]
        if whole:  # a report without any header is all description
            both = sections.apply_policy(whole[0].text, "", "mask")
    if config.empty_report == "reject" and not (both["has_findings"] or both["has_impression"]):
        nan = any(manifests.is_nan(row, mapping.get(field)) for field in ("findings", "impression", "report"))
        reason = "nan_text" if nan else "empty_report" if not report.strip() else "no_findings_or_impression"
        raise Rejection(reason, row=number, item=cells["image"])
    return {"findings": both["findings"], "impression": both["impression"], "report": report}


def make_examples(item: dict[str, Any], config: FolderConfig) -> list[staging.Example]:
    """Reads, resizes and encodes the image of one row. Raises: Rejection with the reason of an `ImageError`."""
    return film_records.make_record(item, config)


class ImageReportFolder(common.LocalBuilder):
    """TFDS builder; run it through `python -m medvlp_jax.prepare image_report_folder`."""

    ABOUT = "Images and reports of a local folder."
    plan, make_examples = staticmethod(plan), staticmethod(make_examples)


def describe(sources: Mapping[str, records.RecordSource]) -> list[str]:
    """Lines printed after a build: which columns were read and how reports were cut."""
    folder = next(iter(sources.values())).folder
    provenance = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    lines = ["Columns: " + ", ".join(f"{field}={column}" for field, column in provenance["columns"].items())]
    if provenance.get("columns_not_read"):
        lines.append(
            f"Columns not read: {', '.join(provenance['columns_not_read'])} (--columns FIELD=COLUMN reads one)"
        )
    lines += common.describe(sources)
    if "patient_id" not in provenance["columns"]:
        lines.append("No patient_id column: every study counts as its own patient, so splits may share patients.")
    if provenance["section_rules"]:
        lines.append("Sections: " + ", ".join(f"{rule}: {n}" for rule, n in provenance["section_rules"].items()))
    if provenance["views_not_understood"]:
        lines.append(f"Views not understood (stored as unknown): {provenance['views_not_understood']}")
    return lines
