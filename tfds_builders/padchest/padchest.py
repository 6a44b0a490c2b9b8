"""PadChest: 16-bit images, Spanish report text, labels by physicians or a model.

    python -m medvlp_jax.prepare padchest --root /data/padchest

Access, counts and settings: README.md beside this file.
"""

from __future__ import annotations

import ast
import dataclasses
from typing import Any

from medvlp_jax.data import film_records, sections, staging
from medvlp_jax.data.labels import PRESENT, translate
from medvlp_jax.data.staging import Plan, Rejection
from medvlp_jax.data.tables import Table, find_file, index_files
from tfds_builders import common

WHAT = "a folder with PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv and the images, unpacked"
COLUMNS = ("ImageID", "ImageDir", "StudyID", "PatientID", "Projection", "Report", "MethodLabel", "Labels")
METHODS = {"all": ("Physician", "RNN_model"), "physician": ("Physician",), "model": ("RNN_model",)}
IMPLIES = {
    "normal": "No Finding",
    "cardiomegaly": "Cardiomegaly",
    **dict.fromkeys(("mediastinal enlargement", "superior mediastinal enlargement"), "Enlarged Cardiomediastinum"),
    **dict.fromkeys(("infiltrates", "alveolar pattern", "consolidation"), "Lung Opacity"),
    **dict.fromkeys(("nodule", "multiple nodules", "pulmonary mass", "mass", "lung metastasis"), "Lung Lesion"),
    "pulmonary edema": "Edema",
    **dict.fromkeys(("pneumonia", "atypical pneumonia"), "Pneumonia"),
    **dict.fromkeys(
        (
            *("atelectasis", "laminar atelectasis", "lobar atelectasis", "segmental atelectasis"),
            *("atelectasis basal", "total atelectasis", "round atelectasis"),
        ),
        "Atelectasis",
    ),
    **dict.fromkeys(("pneumothorax", "hydropneumothorax"), "Pneumothorax"),
    **dict.fromkeys(
        ("pleural effusion", "loculated pleural effusion", "loculated fissural effusion"), "Pleural Effusion"
    ),
    **dict.fromkeys(
        (
            *("pleural thickening", "apical pleural thickening", "calcified pleural thickening", "pleural plaques"),
            *("calcified pleural plaques", "pleural mass", "empyema"),
        ),
        "Pleural Other",
    ),
    **dict.fromkeys(
        (
            "fracture",
            "rib fracture",
            "callus rib fracture",
            "vertebral fracture",
            "clavicle fracture",
            "humeral fracture",
        ),
        "Fracture",
    ),
    **dict.fromkeys(
        (
            *("NSG tube", "endotracheal tube", "tracheostomy tube", "chest drain tube", "gastrostomy tube", "catheter"),
            *("central venous catheter", "central venous catheter via jugular vein", "pacemaker"),
            *("central venous catheter via subclavian vein", "central venous catheter via umbilical vein"),
            *("reservoir central venous catheter", "dual chamber device", "single chamber device"),
            *("electrical device", "artificial heart valve", "artificial mitral heart valve"),
            "artificial aortic heart valve",
        ),
        "Support Devices",
    ),
}
"""Own label -> CheXpert name that it is a kind of. `consolidation` is also Consolidation (below)."""


@dataclasses.dataclass(eq=False)
class PadchestConfig(common.LocalConfig):
    """Settings of PadChest."""

    labels_by: str = "all"
    """Images with labels by "physician" (39,053 of the published table), by the "model", or "all"."""
    keep_excluded: bool = False
    """Keep images that the annotators labelled `exclude` or whose projection is EXCLUDE."""


CONFIG = PadchestConfig(name="default")


def plan(config: PadchestConfig) -> Plan:
    """One work item per row. Raises: ValueError for a table or column that is not there."""
    root = common.root_of(config, WHAT)
    if config.labels != "own":
        raise ValueError(f"labels={config.labels!r}: the rules read English, the reports of PadChest are Spanish.")
    if config.labels_by not in METHODS:
        raise ValueError(f"labels_by={config.labels_by!r}; choices: {', '.join(METHODS)}.")
    table = Table(find_file(root, ("PADCHEST_chest_x_ray_images_labels_*.csv*",), "label table"), COLUMNS)
    files = index_files(root, (".png",))
    items, rejections = [], []
    for number, row in table:
        name = row["ImageID"].strip()
        try:
            own = _checked(row, config)
        except Rejection as rejection:
            rejections.append(Rejection(rejection.reason, row=number, item=name))
            continue
        path = files.get(name) or f"{row['ImageDir'].strip()}/{name}"
        text = "" if sections.is_missing(row["Report"]) else " ".join(row["Report"].split())
        labels = translate(own, {}, IMPLIES) | translate(own, {}, {"consolidation": "Consolidation"})
        items.append(
            {
                "row": number,
                "image": path,
                "path": str(root / path),
                "image_id": name.removesuffix(".png"),
                "study_id": row["StudyID"].strip(),
                "patient_id": row["PatientID"].strip(),
                "split": "",
                "view": common.view_name(row["Projection"]),
                "labels": labels,
                "own_labels": own,
                "findings": text,
                "report": text,
                "facts": [f"Projection {row['Projection'].strip()}", f"labels by {row['MethodLabel'].strip()}"],
            }
        )
    return common.finish_plan(items, rejections, config, tables=[table])


def _checked(row: dict[str, str], config: PadchestConfig) -> dict[str, int]:
    """The labels of a row. Raises: Rejection with its reason."""
    if row["MethodLabel"].strip() not in METHODS[config.labels_by]:
        raise Rejection("not_selected")
    own = dict.fromkeys(own_labels(row["Labels"]), PRESENT)
    if not config.keep_excluded and (row["Projection"].strip() == "EXCLUDE" or "exclude" in own):
        raise Rejection("excluded_by_annotators")
    return own


def own_labels(cell: str) -> list[str]:
    """The names in a cell that holds the text of a Python list, stripped, each once.

    Raises: Rejection "nan_label" for a cell without a list, "bad_label" for another text.
    """
    if sections.is_missing(cell):
        raise Rejection("nan_label")
    try:
        names = ast.literal_eval(cell)
        return [name for name in dict.fromkeys(str(name).strip() for name in names) if name]
    except (ValueError, SyntaxError, TypeError):
        raise Rejection("bad_label") from None


def make_examples(item: dict[str, Any], config: PadchestConfig) -> list[staging.Example]:
    """The record of one image. Raises: Rejection."""
    return film_records.make_record(item, config)


describe = common.describe


class Padchest(common.LocalBuilder):
    """TFDS builder; run it through `python -m medvlp_jax.prepare padchest`."""

    ABOUT = "PadChest images with Spanish report text and labels."
    plan, make_examples = staticmethod(plan), staticmethod(make_examples)
