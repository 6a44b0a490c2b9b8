"""Your own images and reports: a folder with a JSONL or CSV manifest (DICOM, PNG, JPEG).

    python -m medvlp_jax.prepare image_report_folder --name ours --manifest /data/ours/studies.csv \\
        --columns "image=path,report=report_text,patient_id=pid,split=fold"

Every row of the manifest becomes one record or one line of `rejected.csv`. See README.md beside this file.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from medvlp_jax.data import images, preprocess, records, sections, sentences, staging
from medvlp_jax.data.staging import Plan, Rejection
from medvlp_jax.data.view_geometry import box_in_view, view_to_image
from tfds_builders.image_report_folder import manifest as manifests


@dataclasses.dataclass(eq=False)
class FolderConfig(tfds.core.BuilderConfig):
    """Settings of one folder; each is a command-line option of `medvlp_jax.prepare`."""

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
    sentences: str = "simple"
    """Sentence rule; see `sentences.RULES`."""
    empty_report: str = "reject"
    """"reject" or "keep" rows without findings and impression."""
    fractions: str = "0.8,0.1,0.1"
    """Shares of patients for train, validation and test when there is no split column."""
    seed: int = 0
    """Of the split; a patient keeps its split when rows are added."""
    split_conflict: str = "error"
    """A patient in two splits: "error", "drop" all its rows, or keep those of the "first" split it occurs in."""
    size: int = 256
    """Pixels, 0 for the original size; see `images.resize_keep_aspect`."""
    fit: str = "pad"
    crop_border: bool = False
    """Cut dark edges first."""
    depth: int = 8
    """Bits per stored pixel, 8 or 16 (16 keeps what 16-bit files and DICOM hold)."""
    encoding: str = "auto"
    """"png", "jpeg", or "auto": JPEG where the source is JPEG, otherwise PNG."""
    frame: int = -1
    """Frame of multi-frame DICOM files; -1 rejects them."""
    public: bool = False
    """May text and pixels of these records be shown in reports and logs?"""
    limit: int = 0
    """Rows read, 0 for all."""


CONFIG = FolderConfig(name="default")
_CHOICES = {
    "sections": sections.MODES,
    "sentences": tuple(sentences.RULES),
    "empty_report": ("reject", "keep"),
    "split_conflict": ("error", "drop", "first"),
    "fit": images.FITS,
    "depth": (8, 16),
    "encoding": ("auto", "png", "jpeg"),
}


class ImageReportFolder(tfds.core.GeneratorBasedBuilder):
    """TFDS builder; run it through `python -m medvlp_jax.prepare image_report_folder`."""

    VERSION = tfds.core.Version("1.0.0")
    staging: staging.Staging | None = None

    def _info(self) -> tfds.core.DatasetInfo:
        return records.dataset_info(self, "Images and reports of a local folder.")

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[staging.Example]]:
        del dl_manager  # nothing is downloaded
        return staging.split_generators(self, plan(self.builder_config), make_examples)

    def _generate_examples(self, examples: Iterator[staging.Example]) -> Iterator[staging.Example]:
        yield from examples


def plan(config: FolderConfig) -> Plan:
    """Reads the manifest: one work item per usable row, with its text, labels, ids and the state of its image file.

    Raises: ValueError for settings or columns that do not exist, and for a patient in two splits (see
    `split_conflict`).
    """
    for setting, choices in _CHOICES.items():
        if getattr(config, setting) not in choices:
            raise ValueError(f"{setting}={getattr(config, setting)!r}; choices: {', '.join(map(str, choices))}.")
    if config.depth == 16 and config.encoding == "jpeg":
        raise ValueError("encoding='jpeg' holds 8 bits; use encoding='png' with depth=16.")
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
    seen: set[str] = set()
    for number, row in manifest.rows:
        try:
            if any(manifests.cell(row, column).strip() not in values for column, values in wanted.items()):
                raise Rejection("not_selected", row=number)
            item = _item(number, row, mapping, root, config, rules, views)
            if item["image_id"] in seen:
                raise Rejection("duplicate_image_id", row=number)
        except Rejection as rejection:
            rejections.append(rejection)
            continue
        seen.add(item["image_id"])
        items.append(item)
    if "split" not in mapping:
        thresholds = _thresholds(config.fractions)
        for item in items:
            item["split"] = _drawn_split(item["patient_id"], config.seed, thresholds)
    items, conflicts = _one_split_per_patient(items, config.split_conflict)
    provenance = {
        "manifest_sha256": manifest.sha256,
        "rows": len(manifest.rows) + len(manifest.rejections),
        "columns": mapping,
        "split": f"column {mapping['split']!r}" if "split" in mapping else f"drawn by patient, {config.fractions}",
        "section_rules": dict(sorted(rules.items())),
        "views_not_understood": sum(views.values()),
    }
    splits = {split: [item for item in items if item["split"] == split] for split in records.SPLITS}
    return Plan({name: rows for name, rows in splits.items() if rows}, rejections + conflicts, provenance)


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
        state = (root / image).stat()
    except (OSError, ValueError):
        raise Rejection("missing_file", row=number, item=image) from None
    try:
        labels = manifests.row_labels(row, mapping)
    except ValueError as error:
        raise Rejection("bad_label", row=number, item=image, detail=str(error)) from None
    try:
        boxes = manifests.row_boxes(row, mapping.get("boxes"))
    except ValueError as error:
        raise Rejection("bad_box", row=number, item=image, detail=str(error)) from None
    split = manifests.SPLIT_NAMES.get(cells["split"].strip().lower(), "")
    if "split" in mapping and not split:
        raise Rejection("bad_split", row=number, item=image)
    image_id = cells["image_id"].strip() or image
    patient_id = cells["patient_id"].strip()
    if "patient_id" in mapping and not patient_id:
        raise Rejection("missing_patient_id", row=number, item=image)
    view = manifests.VIEW_NAMES.get(cells["view"].strip().upper(), "")
    views["not understood"] += bool(cells["view"].strip()) and not view
    text = _text(number, row, cells, mapping, root, config, rules)
    return {
        "row": number,
        "image": image,
        "bytes": state.st_size,
        "modified": state.st_mtime_ns,
        "path": str(root / image),
        "image_id": image_id,
        "study_id": cells["study_id"].strip() or image_id,
        "patient_id": patient_id or cells["study_id"].strip() or image_id,
        "split": split,
        "view": view,
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


def _thresholds(fractions: str) -> list[tuple[float, str]]:
    try:
        shares = [float(part) for part in fractions.split(",")]
    except ValueError:
        shares = []
    if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"fractions={fractions!r} must be three shares of train, validation, test that sum to 1.")
    return [(shares[0], "train"), (shares[0] + shares[1], "validation"), (float("inf"), "test")]


def _drawn_split(patient_id: str, seed: int, thresholds: list[tuple[float, str]]) -> str:
    draw = int.from_bytes(hashlib.blake2b(f"{seed}:{patient_id}".encode()).digest()[:8], "big") / 2**64
    return next(split for threshold, split in thresholds if draw < threshold)


def _one_split_per_patient(items: list[dict[str, Any]], policy: str) -> tuple[list[dict[str, Any]], list[Rejection]]:
    first: dict[str, str] = {}
    for item in items:
        first.setdefault(item["patient_id"], item["split"])
    astray = [item for item in items if item["split"] != first[item["patient_id"]]]
    if not astray:
        return items, []
    if policy == "error":
        rows = ", ".join(str(item["row"]) for item in astray[:5])
        raise ValueError(
            f"{len({item['patient_id'] for item in astray})} patients are in more than one split (rows {rows}"
            f"{', ...' if len(astray) > 5 else ''}): scores would be too good. Correct the split column, or add "
            "--split_conflict first (keep a patient's rows of its first split) or --split_conflict drop."
        )
    patients = {item["patient_id"] for item in astray}
    out = [item for item in items if item["patient_id"] in patients] if policy == "drop" else astray
    numbers = {item["row"] for item in out}
    rejections = [Rejection("patient_in_two_splits", row=item["row"], item=item["image"]) for item in out]
    return [item for item in items if item["row"] not in numbers], rejections


def make_examples(item: dict[str, Any], config: FolderConfig) -> list[staging.Example]:
    """Reads, resizes and encodes the image of one row. Raises: Rejection with the reason of an `ImageError`."""
    try:
        data = images.read_bytes(item["path"])
        image = images.read_image(data, frame=None if config.frame < 0 else config.frame)
    except images.ImageError as error:
        raise Rejection(error.reason, row=item["row"], item=item["image"], detail=error.detail) from None
    boxes = item["boxes"]
    if config.crop_border:
        cropped = images.crop_border(image)
        boxes = _moved(boxes, preprocess.Op("crop_border"), image, cropped.shape)
        image = cropped
    if config.size:
        resized = images.resize_keep_aspect(image, config.size, config.fit)
        boxes = _moved(boxes, preprocess.Op("resize", (config.size, config.fit)), image, resized.shape)
        image = resized
    if config.depth == 8:
        image = images.to_uint8(image)
    jpeg = config.encoding == "jpeg" or (
        config.encoding == "auto" and config.depth == 8 and images.sniff(data) == "jpeg"
    )
    example = records.example(
        image=images.encode_jpeg(image) if jpeg else images.encode_png(image),
        findings=item["findings"],
        impression=item["impression"],
        report=item["report"],
        sentences=sentences.split_sentences(item["findings"], config.sentences),
        labels=item["labels"],
        boxes=[{**box, "sentence": -1} for box in boxes],
        view=item["view"],
        patient_id=item["patient_id"],
        study_id=item["study_id"],
        image_id=item["image_id"],
        public=config.public,
        source={"file": item["image"], "sha256": hashlib.sha256(data).hexdigest()},
    )
    return [(item["image_id"], example)]


def _moved(
    boxes: list[dict[str, Any]], op: preprocess.Op, before: np.ndarray, shape: tuple[int, int]
) -> list[dict[str, Any]]:
    """Boxes of the image `before` in the frame of the image that `op` makes of it, cut to it; those outside dropped.

    One operation at a time: what a crop cuts off must not come back in the bars that padding adds.
    """
    if not boxes:
        return []
    matrix = view_to_image([op], before)
    placed = [(box, box_in_view(box["box"], matrix, before.shape, shape)) for box in boxes]
    return [{**box, "box": place} for box, place in placed if place is not None]


def describe(sources: Mapping[str, records.RecordSource]) -> list[str]:
    """Lines printed after a build: which columns were read and how reports were cut."""
    folder = next(iter(sources.values())).folder
    provenance = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    lines = ["Columns: " + ", ".join(f"{field}={column}" for field, column in provenance["columns"].items())]
    lines.append(f"Split: {provenance['split']}")
    if "patient_id" not in provenance["columns"]:
        lines.append("No patient_id column: every study counts as its own patient, so splits may share patients.")
    if provenance["section_rules"]:
        lines.append("Sections: " + ", ".join(f"{rule}: {n}" for rule, n in provenance["section_rules"].items()))
    if provenance["views_not_understood"]:
        lines.append(f"Views not understood (stored as unknown): {provenance['views_not_understood']}")
    return lines
