"""MS-CXR: phrases of reports with the boxes they speak of, on MIMIC-CXR images. For evaluation alone.

    python -m medvlp_jax.prepare ms_cxr --root /data/ms-cxr/1.1.0 --images_root /data/mimic-cxr-jpg/2.1.0

Access, counts and settings: README.md beside this file.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from medvlp_jax.data import film_records, staging
from medvlp_jax.data.labels import CHEXPERT_LABELS, PRESENT, position
from medvlp_jax.data.staging import Plan, Rejection
from medvlp_jax.data.tables import Table, find_file
from tfds_builders import common
from tfds_builders.mimic_cxr.mimic_cxr import EXTENSIONS, image_finder, mimic_images

WHAT = "the MS-CXR folder of PhysioNet, with MS_CXR_Local_Alignment_v1.1.0.csv (https://physionet.org/content/ms-cxr/)"
COLUMNS = ("dicom_id", "category_name", "label_text", "path", "x", "y", "w", "h", "image_width", "image_height")


@dataclasses.dataclass(eq=False)
class MsCxrConfig(common.LocalConfig):
    """Settings of MS-CXR."""

    images_root: str = ""
    """Folder of the MIMIC-CXR-JPG images (or DICOM files, or smaller copies in the same tree)."""


CONFIG = MsCxrConfig(name="default")


def plan(config: MsCxrConfig) -> Plan:
    """One work item per image, with its phrases and their boxes. Raises: ValueError for what is not there."""
    root = common.root_of(config, WHAT)
    images_root = mimic_images(config.images_root)
    table = Table(find_file(root, ("MS_CXR_Local_Alignment_v*.csv",), "phrase table"), COLUMNS, ("split",))
    find_image = image_finder(images_root, EXTENSIONS["auto"])
    found: dict[str, dict[str, Any]] = {}
    rejections: list[Rejection] = []
    for number, row in table:
        dicom = row["dicom_id"].strip()
        try:
            ids = re.search(r"(p\d\d)/p(\d+)/s(\d+)/", row["path"])
            if ids is None:
                raise Rejection("bad_path")
            finding, box = _box(row)
        except Rejection as rejection:
            rejections.append(Rejection(rejection.reason, row=number, item=dicom, detail=rejection.detail))
            continue
        group, subject, study = ids.groups()
        if dicom not in found:
            found[dicom] = {
                "row": number,
                "image": f"{group}/p{subject}/s{study}/{dicom}",
                "tree": f"{group}/p{subject}/s{study}",
                "image_id": dicom,
                "study_id": study,
                "patient_id": subject,
                "split": "test",
                "view": "FRONTAL",
                "labels": {},
                "boxes": [],
                "sentences": [],
                "facts": [f"split column: {row['split'].strip()}"] if row.get("split", "").strip() else [],
            }
        item = found[dicom]
        phrase = " ".join(row["label_text"].split())
        if phrase not in item["sentences"]:
            item["sentences"].append(phrase)
            item["facts"].append("phrases")
        item["labels"][finding] = PRESENT
        item["boxes"].append({"box": box, "finding": finding, "sentence": item["sentences"].index(phrase)})
    for item in found.values():
        item["findings"] = " ".join(phrase.rstrip(".") + "." for phrase in item["sentences"])
    version = {"annotations": table.path.name}
    rule = "all test"
    return common.finish_plan(
        list(found.values()), rejections, config, tables=[table], split_rule=rule, provenance=version, locate=find_image
    )


def _box(row: dict[str, str]) -> tuple[str, list[float]]:
    """(CheXpert name, [ymin, xmin, ymax, xmax] in 0..1). Raises: Rejection "bad_label" or "bad_box"."""
    try:
        finding = CHEXPERT_LABELS[position(row["category_name"])]
    except ValueError:
        raise Rejection("bad_label", detail=row["category_name"]) from None
    try:
        x, y, w, h, width, height = (float(row[name]) for name in ("x", "y", "w", "h", "image_width", "image_height"))
        box = [y / height, x / width, (y + h) / height, (x + w) / width]
    except (ValueError, ZeroDivisionError):
        raise Rejection("bad_box", detail="no numbers") from None
    box = [min(max(edge, 0.0), 1.0) for edge in box]
    if box[0] >= box[2] or box[1] >= box[3]:
        raise Rejection("bad_box", detail="empty")
    return finding, box


def make_examples(item: dict[str, Any], config: MsCxrConfig) -> list[staging.Example]:
    """The record of one image. Raises: Rejection."""
    return film_records.make_record(item, config)


describe = common.describe


class MsCxr(common.LocalBuilder):
    """TFDS builder; run it through `python -m medvlp_jax.prepare ms_cxr`."""

    ABOUT = "MS-CXR phrases with boxes on MIMIC-CXR images."
    plan, make_examples = staticmethod(plan), staticmethod(make_examples)
