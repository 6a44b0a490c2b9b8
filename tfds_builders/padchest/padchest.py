"""PadChest: 16-bit images, Spanish report text, labels by physicians or a model.

    python -m medvlp_jax.prepare padchest --root /data/padchest

Access, counts and settings: README.md beside this file.
"""

from __future__ import annotations

import ast
import dataclasses
from typing import Any

from medvlp_jax.data import demographics, film_records, sections, staging
from medvlp_jax.data.label_translations import KIND, NONE, Row, translate
from medvlp_jax.data.labels import PRESENT
from medvlp_jax.data.packed import Packed
from medvlp_jax.data.staging import Plan, Rejection
from medvlp_jax.data.tables import Table, find_file, index_files
from tfds_builders import common

WHAT = "a folder with PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv and the images, unpacked"
COLUMNS = ("ImageID", "ImageDir", "StudyID", "PatientID", "Projection", "Report", "MethodLabel", "Labels")
PERSON = ("PatientBirth", "StudyDate_DICOM", "PatientSex_DICOM")
METHODS = {"all": ("Physician", "RNN_model"), "physician": ("Physician",), "model": ("RNN_model",)}
LABELS = (
    Row(("normal",), KIND, "No Finding", "said of the whole image"),
    Row(("cardiomegaly",), KIND, "Cardiomegaly", "the same word"),
    Row(
        ("mediastinal enlargement", "superior mediastinal enlargement"),
        KIND,
        "Enlarged Cardiomediastinum",
        "a wide mediastinum",
    ),
    Row(
        (
            "infiltrates",
            "interstitial pattern",
            "reticular interstitial pattern",
            "reticulonodular interstitial pattern",
        ),
        KIND,
        "Lung Opacity",
        "the labeler reads infiltrate and interstitial pattern so",
    ),
    Row(
        ("increased density", "miliary opacities"),
        KIND,
        "Lung Opacity",
        "the labeler reads increased density and opaci- so",
    ),
    Row(
        ("alveolar pattern", "consolidation"),
        KIND,
        "Lung Opacity",
        "air spaces that are filled; the labeler: airspace disease",
    ),
    Row(("consolidation",), KIND, "Consolidation", "the same word"),
    Row(
        ("nodule", "multiple nodules", "pulmonary mass", "lung metastasis"),
        KIND,
        "Lung Lesion",
        "the labeler: nodule, mass, neoplasm",
    ),
    Row(("pulmonary edema",), KIND, "Edema", "the same words"),
    Row(("pneumonia", "atypical pneumonia"), KIND, "Pneumonia", "the same word"),
    Row(
        (
            *("atelectasis", "laminar atelectasis", "lobar atelectasis", "segmental atelectasis"),
            *("atelectasis basal", "total atelectasis", "round atelectasis"),
        ),
        KIND,
        "Atelectasis",
        "the same word",
    ),
    Row(("pneumothorax", "hydropneumothorax"), KIND, "Pneumothorax", "air in the pleural space"),
    Row(
        ("pleural effusion", "loculated pleural effusion", "loculated fissural effusion"),
        KIND,
        "Pleural Effusion",
        "the same word",
    ),
    Row(
        ("pleural thickening", "apical pleural thickening", "calcified pleural thickening"),
        KIND,
        "Pleural Other",
        "the labeler's first phrase for it",
    ),
    Row(
        ("pleural plaques", "calcified pleural plaques"),
        KIND,
        "Pleural Other",
        "a plaque is a circumscribed pleural thickening (NIOSH B Reader syllabus)",
    ),
    Row(
        (
            "fracture",
            "rib fracture",
            "callus rib fracture",
            "vertebral fracture",
            "clavicle fracture",
            "humeral fracture",
        ),
        KIND,
        "Fracture",
        "the same word",
    ),
    Row(
        (
            *("NSG tube", "endotracheal tube", "tracheostomy tube", "chest drain tube", "gastrostomy tube", "catheter"),
            *("central venous catheter", "central venous catheter via jugular vein", "pacemaker"),
            *("central venous catheter via subclavian vein", "central venous catheter via umbilical vein"),
            *("reservoir central venous catheter", "dual chamber device", "single chamber device"),
            *("electrical device", "artificial heart valve", "artificial mitral heart valve"),
            "artificial aortic heart valve",
        ),
        KIND,
        "Support Devices",
        "the labeler: tube, catheter, pacemaker, device, valve",
    ),
    Row(("pleural mass", "empyema"), NONE, "", "none of the labeler's phrases for Pleural Other (8 images)"),
    Row(
        ("mass",),
        NONE,
        "",
        "not said of what: the set has pulmonary, mediastinal, pleural, breast and soft tissue masses",
    ),
    Row(
        ("fissure thickening", "minor fissure thickening", "major fissure thickening"),
        NONE,
        "",
        "may be fluid or pleura",
    ),
    Row(("costophrenic angle blunting",), NONE, "", "may be an effusion or a thickening"),
    Row(("pseudonodule", "nipple shadow", "calcified granuloma"), NONE, "", "the labeler leaves out calcified nodules"),
    Row(("heart insufficiency",), NONE, "", "a diagnosis; whether there is edema is not said"),
)
"""The list of an image names what was found, so nothing is ever absent."""


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
    table = Table(find_file(root, ("PADCHEST_chest_x_ray_images_labels_*.csv*",), "label table"), COLUMNS, PERSON)
    files = index_files(root, (".png",))
    items, rejections = Packed(), []
    for number, row in table:
        name = row["ImageID"].strip()
        try:
            own = _checked(row, config)
        except Rejection as rejection:
            rejections.append(Rejection(rejection.reason, row=number, item=name))
            continue
        path = files.get(name) or f"{row['ImageDir'].strip()}/{name}"
        text = "" if sections.is_missing(row["Report"]) else " ".join(row["Report"].split())
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
                "age": age_of(row.get("PatientBirth", ""), row.get("StudyDate_DICOM", "")),
                "sex": demographics.parse_sex(row.get("PatientSex_DICOM")),
                "labels": translate(own, LABELS),
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


def age_of(birth: str, study: str) -> int:
    """Year of birth and date of study -> age in years, at most one too many; -1 when one of them is missing."""
    try:
        return demographics.capped(int(study[:4]) - int(float(birth)))
    except (ValueError, OverflowError):
        return demographics.UNKNOWN_AGE


def make_examples(item: dict[str, Any], config: PadchestConfig) -> list[staging.Example]:
    """The record of one image. Raises: Rejection."""
    return film_records.make_record(item, config)


describe = common.describe


class Padchest(common.LocalBuilder):
    """TFDS builder; run it through `python -m medvlp_jax.prepare padchest`."""

    ABOUT = "PadChest images with Spanish report text and labels."
    plan, make_examples = staticmethod(plan), staticmethod(make_examples)
