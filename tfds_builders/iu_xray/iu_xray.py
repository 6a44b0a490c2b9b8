"""Indiana University chest X-rays (Open-i) in any of three forms: original XML, the two CSV files, annotation.json.

    python -m medvlp_jax.prepare iu_xray --root /data/iu_xray

Access, counts and settings: README.md beside this file.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medvlp_jax.data import archives, film_records, sections, staging
from medvlp_jax.data.label_translations import KIND, NONE, Row, translate
from medvlp_jax.data.labels import PRESENT
from medvlp_jax.data.staging import Plan, Rejection
from medvlp_jax.data.tables import Table, find_optional, index_files
from tfds_builders import common

WHAT = (
    "a folder with the images and the reports: ecgen-radiology/*.xml (or NLMCXR_reports.tgz), or indiana_reports.csv "
    "and indiana_projections.csv, or annotation.json"
)
SECTIONS = ("comparison", "indication", "findings", "impression")
LABELS = (
    Row(("normal",), KIND, "No Finding", "said of the whole report"),
    Row(("Cardiomegaly",), KIND, "Cardiomegaly", "the same word"),
    Row(("Opacity", "Airspace Disease", "Infiltrate"), KIND, "Lung Opacity", "phrases of the labeler"),
    Row(("Nodule", "Mass"), KIND, "Lung Lesion", "phrases of the labeler"),
    Row(("Pulmonary Edema",), KIND, "Edema", "the same word"),
    Row(("Consolidation",), KIND, "Consolidation", "the same word"),
    Row(("Pneumonia",), KIND, "Pneumonia", "the same word"),
    Row(("Pulmonary Atelectasis",), KIND, "Atelectasis", "the same word"),
    Row(("Pneumothorax", "Hydropneumothorax", "Hemopneumothorax"), KIND, "Pneumothorax", "air in the pleural space"),
    Row(("Pleural Effusion",), KIND, "Pleural Effusion", "the same word"),
    Row(("Fractures, Bone",), KIND, "Fracture", "the same word"),
    Row(
        ("Catheters, Indwelling", "Implanted Medical Device", "Medical Device", "Tube, Inserted"),
        KIND,
        "Support Devices",
        "phrases of the labeler",
    ),
    Row(
        ("Nodule elsewhere", "Mass elsewhere", "Opacity elsewhere"),
        NONE,
        "",
        "the term names another place than the lung",
    ),
    Row(("Stents",), NONE, "", "of the coronary vessels, the aorta, the abdomen; no phrase of the labeler"),
    Row(("Pulmonary Congestion", "Heart Failure"), NONE, "", "whether there is edema is not said"),
)
"""First part of a MeSH term -> CheXpert name it is a kind of. Terms name what is there; absence is not said."""
ELSEWHERE = frozenset(
    (
        *("adipose tissue", "breast", "heart", "mediastinum", "pleura", "pleural sinus", "ribs", "soft tissue"),
        *("supracardiac", "thoracic vertebrae", "sternum", "clavicle", "humerus"),
    )
)
"""Places in a MeSH term that are not the lung."""


@dataclasses.dataclass(eq=False)
class IuConfig(common.LocalConfig):
    """Settings of the Indiana University set."""

    fractions: str = "0.7,0.1,0.2"
    """Shares of reports for train, validation and test, unless an annotation.json says."""
    empty_report: str = "reject"
    """"reject" or "keep" images whose report has neither findings nor impression."""


CONFIG = IuConfig(name="default")
Report = dict[str, Any]
"""uid, comparison, indication, findings, impression, mesh (list of terms), images [(name, view)], split."""


def plan(config: IuConfig) -> Plan:
    """One work item per image of a report. The report is the patient: no other id is published.

    Raises: ValueError when no form of the set is under the root.
    """
    root = common.root_of(config, WHAT)
    if config.empty_report not in ("reject", "keep"):
        raise ValueError(f"empty_report={config.empty_report!r}; choices: reject, keep.")
    reports, tables, form = _reports(root)
    files = {_stem(name): path for name, path in index_files(root, (".png", ".jpg", ".jpeg", ".dcm")).items()}
    items, rejections = [], []
    for number, report in enumerate(reports, start=1):
        if not report["uid"]:
            rejections.append(Rejection("damaged_report_file", row=number))
            continue
        both = sections.apply_policy(report["findings"], report["impression"], "mask")
        if not report["images"]:
            rejections.append(Rejection("no_image", row=number, item=report["uid"]))
        if config.empty_report == "reject" and not (both["has_findings"] or both["has_impression"]):
            rejections += [Rejection("empty_report", row=number, item=name) for name, _ in report["images"]]
            continue
        own = {term.split("/")[0].strip(): PRESENT for term in report["mesh"]}
        whole = "\n".join(
            f"{name.upper()}: {report[name].strip()}" for name in SECTIONS if not sections.is_missing(report.get(name))
        )
        uid = f"CXR{_key(report['uid'].split('_')[0], '')[0]}"  # the same in every form
        for name, view in report["images"]:
            path = files.get(_stem(name))
            items.append(
                {
                    "row": number,
                    "image": path or name,
                    "path": str(root / (path or name)),
                    "image_id": _stem(name),
                    "study_id": uid,
                    "patient_id": uid,
                    "split": report["split"],
                    "view": common.view_name(view),
                    "labels": translate({_placed(term): PRESENT for term in report["mesh"]}, LABELS),
                    "own_labels": own,
                    "findings": both["findings"],
                    "impression": both["impression"],
                    "report": whole,
                    "facts": [f"view {view or 'unknown'}"],
                }
            )
    rule = "annotation.json" if form == "annotation.json" else ""
    facts = {"form": form, "reports": len(reports)}
    return common.finish_plan(items, rejections, config, tables=tables, split_rule=rule, provenance=facts)


def _placed(term: str) -> str:
    """ "Nodule/lung/apex" -> "Nodule"; "Nodule elsewhere" where the term names another place and not the lung."""
    first, *rest = (part.strip() for part in term.split("/"))
    moved = first in ("Nodule", "Mass", "Opacity") and "lung" not in rest and not ELSEWHERE.isdisjoint(rest)
    return f"{first} elsewhere" if moved else first


def _stem(name: str) -> str:
    """File name without its extensions, of which the Kaggle copy has two (.dcm.png)."""
    name = os.path.basename(name)
    for extension in (".png", ".jpg", ".jpeg", ".dcm"):
        name = name.removesuffix(extension)
    return name.removesuffix(".dcm")


def _reports(root: Path) -> tuple[list[Report], list[Table], str]:
    """The reports of the first form that there is, the tables read, and the name of the form."""
    projections = find_optional(root, ("indiana_projections.csv", "projections.csv", "*/indiana_projections.csv"))
    views: dict[tuple[str, str], str] = {}
    tables = []
    if projections is not None:
        table = Table(projections, ("uid", "filename", "projection"))
        tables.append(table)
        views = {_key(row["uid"], row["filename"]): row["projection"].strip() for _, row in table}
    csv_reports = find_optional(root, ("indiana_reports.csv", "*/indiana_reports.csv"))
    if csv_reports is not None and tables:
        table = Table(csv_reports, ("uid", "MeSH", "indication", "comparison", "findings", "impression"))
        return _csv_reports(table, tables[0]), [*tables, table], "csv"
    annotation = find_optional(root, ("annotation.json", "*/annotation.json"))
    if annotation is not None:
        return list(_annotated(annotation, views)), tables, "annotation.json"
    reports = [_xml_report(data, views) for data in _xml_files(root)]
    if not reports:
        raise ValueError(f"No reports under {root}. It should be {WHAT}.")
    return reports, tables, "xml"


def _key(uid: str, name: str) -> tuple[str, str]:
    """What the XML and the CSV form have in common: the number of the report and IM-xxxx-yyyy."""
    found = re.search(r"IM-[\d-]*\d", name)
    return uid.strip().removeprefix("CXR"), found.group() if found else name


def _csv_reports(table: Table, projections: Table) -> list[Report]:
    pictures: dict[str, list[tuple[str, str]]] = {}
    for _, row in projections:
        pictures.setdefault(row["uid"].strip(), []).append((row["filename"].strip(), row["projection"].strip()))
    reports = []
    for _, row in table:
        uid = row["uid"].strip()
        terms = [term.strip() for term in row["MeSH"].split(";") if term.strip()]
        reports.append({**row, "uid": uid, "mesh": terms, "images": pictures.get(uid, []), "split": ""})
    return reports


def _annotated(path: Path, views: dict[tuple[str, str], str]) -> Iterator[Report]:
    """The form of R2Gen: one text per report, with the split; it becomes the findings."""
    names = {"train": "train", "val": "validation", "test": "test"}
    for split, entries in json.loads(path.read_text(encoding="utf-8")).items():
        for entry in entries:
            uid = str(entry["id"]).split("_")[0]
            number = _key(uid, "")[0]
            pictures = [(name, views.get((number, _key(uid, str(entry["id"]))[1]), "")) for name in entry["image_path"]]
            named = {"uid": str(entry["id"]), "findings": entry["report"], "impression": "", "mesh": []}
            yield {**named, "images": [(name, view) for name, view in pictures], "split": names.get(split, "")}


def _xml_files(root: Path) -> Iterator[bytes]:
    folder = next((path for path in (root / "ecgen-radiology", root) if any(path.glob("*.xml"))), None)
    if folder is not None:
        for path in sorted(folder.glob("*.xml"), key=lambda path: (len(path.name), path.name)):
            yield path.read_bytes()
        return
    archive = find_optional(root, ("NLMCXR_reports.tgz", "*.tgz"))
    if archive is not None:
        for _, data in sorted(archives.tar_files(archive, ".xml"), key=lambda pair: (len(pair[0]), pair[0])):
            yield data


def _xml_report(data: bytes, views: dict[tuple[str, str], str]) -> Report:
    """A file that is no such report has no uid."""
    try:
        tree = ElementTree.fromstring(data)
        uid = tree.find("uId").get("id", "")  # type: ignore[union-attr]
    except (ElementTree.ParseError, AttributeError, ValueError):
        return {"uid": "", **dict.fromkeys(("comparison", "indication", "findings", "impression"), ""), "images": []}
    text = {part.get("Label", "").lower(): " ".join((part.text or "").split()) for part in tree.iter("AbstractText")}
    pictures = [picture.get("id", "") for picture in tree.iter("parentImage")]
    return {
        **{name: text.get(name, "") for name in SECTIONS},
        "uid": uid,
        "mesh": [(term.text or "").strip() for term in tree.iterfind("MeSH/major")],
        "images": [(name, views.get(_key(uid, name), "")) for name in pictures],
        "split": "",
    }


def make_examples(item: dict[str, Any], config: IuConfig) -> list[staging.Example]:
    """The record of one image. Raises: Rejection."""
    return film_records.make_record(item, config)


describe = common.describe


class IuXray(common.LocalBuilder):
    """TFDS builder; run it through `python -m medvlp_jax.prepare iu_xray`."""

    ABOUT = "Indiana University chest X-rays with reports."
    plan, make_examples = staticmethod(plan), staticmethod(make_examples)
