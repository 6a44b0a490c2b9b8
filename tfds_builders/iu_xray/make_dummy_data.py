"""Draws a tiny Indiana University folder in its original form (XML) or as the two CSV files.

python -m tfds_builders.iu_xray.make_dummy_data --folder /tmp/iu
"""

from __future__ import annotations

import argparse
from pathlib import Path

from medvlp_jax.data import images
from tfds_builders.image_report_folder.make_dummy_data import ellipses
from tfds_builders.testing import write_csv, write_files

# uid, findings, impression, MeSH, [(image, projection)]
REPORTS: list[tuple[int, str, str, list[str], list[tuple[str, str]]]] = [
    (
        1,
        "The heart is normal. No effusion.",
        "Normal chest.",
        ["normal"],
        [("IM-0001-3001", "Lateral"), ("IM-0001-4001", "Frontal")],
    ),
    (
        2,
        "",
        "Mild cardiomegaly, XXXX nodule.",
        ["Cardiomegaly/mild", "Nodule/lung/upper lobe/right"],
        [("IM-0652-1001", "Frontal")],
    ),
    (3, "", "", ["No Indexing"], [("IM-1384-1001", "Frontal")]),
    (4, "Left effusion.", "", ["Pleural Effusion/left"], [("IM-2050-1001", "Frontal")]),  # image not there
    (5, "No picture of this one.", "None.", ["normal"], []),
    (1000, "Clear lungs.", "No finding.", ["normal"], [("IM-0003-1001", "Frontal")]),
]
MISSING = "IM-2050-1001"


def xml(uid: int, findings: str, impression: str, mesh: list[str], pictures: list[tuple[str, str]]) -> str:
    """A report as Open-i writes it (the parts that matter)."""
    labels = {"COMPARISON": "None.", "INDICATION": "Cough, XXXX.", "FINDINGS": findings, "IMPRESSION": impression}
    abstract = "\n".join(f'<AbstractText Label="{label}">{text}</AbstractText>' for label, text in labels.items())
    terms = "".join(f"<major>{term}</major>" for term in mesh)
    parents = "".join(
        f'<parentImage id="{xml_name(uid, name)}"><caption>Xray Chest PA and Lateral</caption></parentImage>'
        for name, _ in pictures
    )
    return (
        f'<?xml version="1.0" encoding="utf-8"?>\n<eCitation><uId id="CXR{uid}"/><MedlineCitation><Article><Abstract>'
        f"{abstract}</Abstract></Article></MedlineCitation><MeSH>{terms}</MeSH>{parents}</eCitation>"
    )


def xml_name(uid: int, name: str) -> str:
    """The id of an image; low numbers carry the number of the report twice."""
    return f"CXR{uid}_{uid}_{name}" if uid < 1000 else f"CXR{uid}_{name}"


def write(folder: Path, form: str = "xml") -> None:
    """Writes reports and images; `form`: xml or csv."""
    files: dict[str, bytes | str] = {}
    reports, projections = [], []
    for number, (uid, findings, impression, mesh, pictures) in enumerate(REPORTS):
        files[f"ecgen-radiology/{uid}.xml"] = xml(uid, findings, impression, mesh, pictures)
        terms = ";".join(mesh)
        reports.append([uid, terms, terms, "Xray Chest PA and Lateral", "Cough, XXXX.", "None.", findings, impression])
        for view, (name, projection) in enumerate(pictures):
            projections.append([uid, f"{uid}_{name}.dcm.png", projection])
            kaggle = f"images/images_normalized/{uid}_{name}.dcm.png"
            path = kaggle if form == "csv" else f"NLMCXR_png/{xml_name(uid, name)}.png"
            if name != MISSING:
                files[path] = images.encode_png(ellipses(10 * number + view))
    if form == "csv":
        files = {name: data for name, data in files.items() if not name.endswith(".xml")}
        header = ("uid", "MeSH", "Problems", "image", "indication", "comparison", "findings", "impression")
        write_csv(folder / "indiana_reports.csv", header, reports)
    write_csv(folder / "indiana_projections.csv", ("uid", "filename", "projection"), projections)
    write_files(folder, files)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--form", choices=("xml", "csv"), default="xml")
    arguments = parser.parse_args()
    write(arguments.folder, arguments.form)
