"""The Indiana set on drawn files in its three forms, and on the real reports where they are at hand."""

import collections
import json

import pytest

pytest.importorskip("tensorflow_datasets")

from medvlp_jax.data import labels, records, sections
from tfds_builders.iu_xray import iu_xray, make_dummy_data
from tfds_builders.testing import make, public_table

ALL = {"size": 32, "fractions": "1,0,0"}


@pytest.mark.parametrize("form", ["xml", "csv"])
def test_every_image(tmp_path, form):
    make_dummy_data.write(tmp_path, form)
    made = make(iu_xray, root=str(tmp_path), **ALL)
    assert made.counts == {"train": 4}
    assert made.reasons == {"empty_report": 1, "missing_file": 1, "no_image": 1}
    prefix = "" if form == "csv" else "CXR1_"
    frontal, lateral = (made.examples[f"{prefix}1_IM-0001-{n}"] for n in (4001, 3001))
    assert (frontal["view"], lateral["view"]) == ("FRONTAL", "LATERAL")
    assert (frontal["findings"], frontal["impression"]) == ("The heart is normal. No effusion.", "Normal chest.")
    assert frontal["report"].startswith("COMPARISON: None.\nINDICATION: Cough")
    assert frontal["study_id"] == lateral["study_id"] == frontal["patient_id"] == records.hashed_id("CXR1")
    assert labels.label_states(frontal["labels"]) == {"No Finding": 1}
    second = f"{'CXR2_' if form == 'xml' else ''}2_IM-0652-1001"
    assert made.own(second) == {"Cardiomegaly": 1, "Nodule": 1}
    assert labels.label_states(made.examples[second]["labels"]) == {"Cardiomegaly": 1, "Lung Lesion": 1}
    assert make(iu_xray, root=str(tmp_path), only_frontal=True, **ALL).reasons["not_frontal"] == 1
    assert make(iu_xray, root=str(tmp_path), empty_report="keep", **ALL).counts == {"train": 5}


def test_annotation_with_its_split(tmp_path):
    make_dummy_data.write(tmp_path, "csv")
    (tmp_path / "indiana_reports.csv").unlink()
    paths = [f"1_IM-0001-{n}.dcm.png" for n in (3001, 4001)]
    entries = {
        "train": [{"id": "CXR1_1_IM-0001", "report": "Heart normal.", "image_path": paths}],
        "val": [],
        "test": [{"id": "CXR1000_IM-0003", "report": "Clear.", "image_path": ["1000_IM-0003-1001.dcm.png"]}],
    }
    (tmp_path / "annotation.json").write_text(json.dumps(entries))
    made = make(iu_xray, root=str(tmp_path), size=32)
    assert made.counts == {"train": 2, "test": 1}
    assert made.provenance["split"] == "annotation.json"
    assert made.examples["1_IM-0001-4001"]["findings"] == "Heart normal."
    assert made.examples["1_IM-0001-4001"]["patient_id"] == records.hashed_id("CXR1")


@pytest.mark.parametrize(
    ("term", "name"),
    [
        ("Nodule/lung/apex/right", "Nodule"),
        ("Nodule/multiple", "Nodule"),
        ("Mass/mediastinum/anterior", "Mass elsewhere"),
        ("Opacity/lung/ribs", "Opacity"),
        ("Pleural Effusion/heart", "Pleural Effusion"),
    ],
)
def test_a_mass_of_another_place_is_no_lung_lesion(term, name):
    assert iu_xray._placed(term) == name


def test_nothing_there(tmp_path):
    with pytest.raises(ValueError, match="No reports under"):
        make(iu_xray, root=str(tmp_path))


def test_real_reports(tmp_path):
    """Counts of the published archive: every report parsed from its XML."""
    (tmp_path / "NLMCXR_reports.tgz").symlink_to(public_table("NLMCXR_reports.tgz"))
    reports, _, form = iu_xray._reports(tmp_path)
    assert (len(reports), form) == (3955, "xml")
    assert sum(bool(report["findings"]) for report in reports) == 3425
    assert sum(bool(report["impression"]) for report in reports) == 3921
    assert sum(bool(report["findings"] and report["impression"]) for report in reports) == 3419
    pictures = [len(report["images"]) for report in reports]
    assert [pictures.count(n) for n in range(6)] == [104, 446, 3208, 181, 15, 1]
    assert sum(pictures) == 7470
    placed = collections.Counter(iu_xray._placed(term) for report in reports for term in set(report["mesh"]))
    assert {name: n for name, n in placed.items() if "elsewhere" in name} == {
        "Opacity elsewhere": 18,
        "Nodule elsewhere": 4,
        "Mass elsewhere": 2,
    }
    names = [name for report in reports for name, _ in report["images"]]
    assert len({iu_xray._stem(name) for name in names}) == 7470


def test_real_reports_come_back_from_the_section_parser(tmp_path):
    """All 3,955 reports of the archive written with headers, as the builder does, and cut again: no error, no change.

    In one, the impression holds a second report on the same line; the loose rule cuts at its FINDINGS, as documented.
    """
    (tmp_path / "NLMCXR_reports.tgz").symlink_to(public_table("NLMCXR_reports.tgz"))
    reports, _, _ = iu_xray._reports(tmp_path)
    assert len(reports) == 3955
    changed = []
    for report in reports:
        parts = {name: report[name].strip() for name in iu_xray.SECTIONS if not sections.is_missing(report[name])}
        for mode in sections.MODES:
            indent = "" if mode == "loose" else "\n "
            whole = "\n".join(f"{indent}{name.upper()}: {text}" for name, text in parts.items())
            chosen = sections.choose(sections.parse_sections(whole, mode))
            if any(chosen[name].strip() != parts.get(name, "") for name in ("findings", "impression")):
                changed.append((report["uid"], mode))
    assert changed == [("CXR2415", "loose")]
