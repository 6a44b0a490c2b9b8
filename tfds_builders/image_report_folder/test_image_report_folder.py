"""The folder builder on its dummy data, on variants of it, and on real folders where they are present."""

import csv
import dataclasses
import gzip
import hashlib
import json
import types
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("tensorflow_datasets")

from medvlp_jax.data import images, labels, records, staging
from medvlp_jax.prepare import main as prepare_main
from medvlp_jax.prepare import prepare
from tfds_builders.image_report_folder import image_report_folder as folder_set
from tfds_builders.image_report_folder import make_dummy_data, manifest
from tfds_builders.testing import local_data

DUMMY = Path(__file__).parent / "dummy_data"
COLUMNS = (
    "image=file,patient_id=pid,study_id=sid,image_id=iid,split=fold,report=report_text,findings=FINDINGS,"
    "impression=IMPRESSION,labels.Pleural Effusion=Effusion column"
)
BASE = dataclasses.replace(
    folder_set.CONFIG, manifest=str(DUMMY / "manifest.csv"), columns=COLUMNS, sections="mimic", size=64
)
FLAWS = {
    5: "no_findings_or_impression",
    9: "truncated_image",
    10: "missing_file",
    12: "empty_report",
    13: "nan_text",
    14: "duplicate_image_id",
    15: "bad_label",
    16: "blank_image",
    17: "bad_split",
    18: "empty_file",
    19: "wrong_number_of_fields",
}


def made(config):
    """All examples by row, and the reason of every other row."""
    plan = folder_set.plan(config)
    examples, reasons = {}, {rejection.row: rejection.reason for rejection in plan.rejections}
    for items in plan.splits.values():
        for item in items:
            try:
                ((_, examples[item["row"]]),) = folder_set.make_examples(item, config)
            except staging.Rejection as rejection:
                reasons[rejection.row] = rejection.reason
    return examples, reasons


def changed(**settings):
    return dataclasses.replace(BASE, **settings)


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def dummy():
    return made(BASE)


def test_every_row_is_a_record_or_a_counted_flaw(dummy):
    examples, reasons = dummy
    assert reasons == FLAWS
    assert set(examples) | set(reasons) == set(range(1, 20))
    assert not set(examples) & set(reasons)


def test_text(dummy):
    examples, _ = dummy
    assert examples[1]["findings"] == "Lungs are clear, heart is normal.\n No effusion."
    assert examples[1]["sentences"] == ["Lungs are clear, heart is normal.", "No effusion."]
    assert examples[1]["impression"] == "1. Normal chest."
    assert (examples[3]["findings"], examples[3]["has_impression"]) == ("hazy opacity in the left lower lung", False)
    assert examples[4]["findings"] == examples[4]["impression"] == "Small left effusion. ___ was informed."
    assert examples[7]["impression"] == "First reading."
    assert (examples[8]["findings"], examples[8]["impression"]) == ("Heart, lungs: normal.", "")


def test_labels_ids_and_views(dummy):
    examples, _ = dummy
    assert labels.label_states(examples[1]["labels"]) == {"Pneumonia": 0, "Pleural Effusion": 0, "Support Devices": 1}
    assert labels.label_states(examples[6]["labels"]) == {"Pneumonia": -1}
    assert examples[1]["study_id"] == examples[2]["study_id"] == records.hashed_id("s1")
    assert examples[1]["image_id"] != examples[2]["image_id"]
    assert [examples[row]["view"] for row in (1, 2, 4, 6)] == ["PA", "LATERAL", "AP", ""]
    assert not any(example["public"] for example in examples.values())


def test_images(dummy):
    examples, _ = dummy
    for row, example in examples.items():
        pixels = cv2.imdecode(np.frombuffer(example["image"], np.uint8), cv2.IMREAD_UNCHANGED)
        assert pixels.shape == (64, 64)
        assert pixels.dtype == np.uint8
        assert images.sniff(example["image"]) == ("jpeg" if row == 6 else "png")
    source = examples[1][records.SOURCE]
    assert source["sha256"] == hashlib.sha256((DUMMY / source["file"]).read_bytes()).hexdigest()
    original = cv2.imdecode(np.frombuffer(made(changed(size=0, limit=1))[0][1]["image"], np.uint8), -1)
    np.testing.assert_array_equal(original, make_dummy_data.ellipses(ord("a")))


def test_sixteen_bits_are_kept_on_request():
    examples, _ = made(changed(depth=16, size=0, limit=4))
    deep = [cv2.imdecode(np.frombuffer(examples[row]["image"], np.uint8), -1) for row in (1, 3, 4)]
    assert [image.dtype for image in deep] == [np.uint8, np.uint16, np.uint16]
    assert deep[1].min() >= 4000


def test_last_paragraph_and_empty_reports_on_request():
    examples, reasons = made(changed(last_paragraph=True, empty_report="keep"))
    assert examples[5]["findings"] == "Right basal opacity."
    assert not examples[12]["has_findings"]
    assert not {5, 12, 13} & set(reasons)


def test_where_and_limit():
    _, reasons = made(changed(where="view=PA|LL,pid=p1"))
    assert {row for row, reason in reasons.items() if reason == "not_selected"} == {4, 5, 6, 7, 8, *range(9, 17), 18}
    examples, reasons = made(changed(limit=6))
    assert set(examples) | set(reasons) == set(range(1, 7))
    with pytest.raises(ValueError, match="Columns: file, pid"):
        folder_set.plan(changed(where="colour=red"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"columns": "image=path"}, "'path', which the manifest lacks. Its columns: file, pid, sid"),
        ({"columns": "picture=file"}, "unknown field 'picture'. Fields: image, findings"),
        ({"columns": "image"}, "not of the form field=column"),
        ({"columns": ""}, "No column holds the image path"),
        ({"columns": "image=file,labels.Cold=Pneumonia"}, "Unknown label 'Cold'"),
        ({"manifest": ""}, "Give the path"),
        ({"manifest": "absent.csv"}, "absent.csv does not exist"),
        ({"fit": "crop"}, "fit='crop'; choices"),
        ({"depth": 16, "encoding": "jpeg"}, "8 bits"),
        ({"columns": "image=file,split=", "fractions": "0.5,0.5"}, "three shares"),
    ],
)
def test_wrong_settings_are_explained(settings, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        folder_set.plan(changed(**settings))


def test_columns_that_nothing_reads_are_named(tmp_path):
    config = changed(columns=COLUMNS.replace("patient_id=pid,", ""), where="Pneumonia=1")
    assert folder_set.plan(config).provenance["columns_not_read"] == ["pid"]
    provenance = {
        "columns": {"image": "file"},
        "columns_not_read": ["pid", "ward"],
        "section_rules": {},
        "split": "drawn",
    }
    told = tmp_path / "provenance.json"
    told.write_text(json.dumps(provenance | {"views_not_understood": 0}))
    lines = folder_set.describe({"train": types.SimpleNamespace(folder=tmp_path)})
    assert "Columns not read: pid, ward (--columns FIELD=COLUMN reads one)" in lines


def test_patient_in_two_splits(tmp_path):
    rows = [("a.png", "p1", "train"), ("b.png", "p1", "test"), ("c.png", "p2", "test"), ("d.png", "p2", "test")]
    for name, *_ in rows:
        (tmp_path / name).write_bytes(images.encode_png(make_dummy_data.ellipses(ord(name[0]))))
    table = [{"image": i, "patient_id": p, "split": s, "findings": "Clear."} for i, p, s in rows]
    config = changed(manifest=write_jsonl(tmp_path / "m.jsonl", table), columns="")
    with pytest.raises(ValueError, match=r"1 patients are in more than one split \(rows 2\)") as caught:
        folder_set.plan(config)
    assert "p1" not in str(caught.value)
    first, reasons = made(dataclasses.replace(config, split_conflict="first"))
    assert (set(first), reasons) == ({1, 3, 4}, {2: "patient_in_two_splits"})
    drop, reasons = made(dataclasses.replace(config, split_conflict="drop"))
    assert (set(drop), set(reasons)) == ({3, 4}, {1, 2})


def test_drawn_splits_are_by_patient_and_stable(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    rows = [{"image": "a.png", "image_id": i, "patient_id": f"p{i // 3}", "findings": "Clear."} for i in range(600)]
    config = changed(manifest=write_jsonl(tmp_path / "m.jsonl", rows), columns="", fractions="0.6,0.2,0.2")

    def split_of(config):
        return {item["patient_id"]: split for split, items in folder_set.plan(config).splits.items() for item in items}

    whole = split_of(config)
    assert len(whole) == 200
    counts = [list(whole.values()).count(split) for split in records.SPLITS]
    assert all(abs(count - expected) < 25 for count, expected in zip(counts, (120, 40, 40), strict=True))
    part = split_of(dataclasses.replace(config, limit=300))
    assert part == {patient: whole[patient] for patient in part}
    assert split_of(dataclasses.replace(config, seed=1)) != whole


def test_kinds_of_manifest(tmp_path):
    with open(DUMMY / "manifest.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    with open(tmp_path / "m.tsv", "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, delimiter="\t").writerows(rows)
    (tmp_path / "m.csv.gz").write_bytes(gzip.compress((DUMMY / "manifest.csv").read_bytes()))
    named = [dict(zip(rows[0], row, strict=True)) for row in rows[1:-1]]
    lines = [json.dumps(row) for row in named]
    (tmp_path / "m.jsonl").write_text("\n".join([*lines, "{broken", ""]))
    reference = [entry for _, entry in manifest.read_manifest(DUMMY / "manifest.csv").rows]
    for name in ("m.tsv", "m.csv.gz", "m.jsonl"):
        read = manifest.read_manifest(tmp_path / name)
        assert [entry for _, entry in read.rows] == reference
        assert [(r.row, r.reason) for r in read.rejections] == [
            (19, "bad_json" if name == "m.jsonl" else "wrong_number_of_fields")
        ]
    (tmp_path / "latin.csv").write_bytes("image,findings\na.png,é\n".encode("latin1"))
    with pytest.raises(ValueError, match="not UTF-8"):
        manifest.read_manifest(tmp_path / "latin.csv")
    with pytest.raises(ValueError, match=r"\.jsonl, \.csv or \.tsv"):
        manifest.read_manifest(Path(__file__))
    (tmp_path / "empty.csv").write_text("image,findings\n")
    with pytest.raises(ValueError, match="no readable row"):
        manifest.read_manifest(tmp_path / "empty.csv")


def test_json_values(tmp_path):
    (tmp_path / "a.png").write_bytes(images.encode_png(make_dummy_data.ellipses(1)))
    (tmp_path / "report.txt").write_text("FINDINGS: Clear.\nIMPRESSION: Normal.")
    base = {"image": "a.png", "Edema": None, "report_file": "report.txt", "findings": None}
    rows = [
        {**base, "image_id": 1.0, "patient_id": 7, "Edema": -1},
        {**base, "image_id": "2", "patient_id": 7.0, "Edema": float("nan"), "findings": float("nan")},
        {**base, "image_id": 3, "patient_id": "", "Edema": True},
        {**base, "image_id": 4, "patient_id": 7, "findings": ["a", "b"]},
        {**base, "image_id": 5, "patient_id": 7, "report_file": "absent.txt"},
        {**base, "image_id": 6, "patient_id": 7, "image": ""},
    ]
    config = changed(manifest=write_jsonl(tmp_path / "m.jsonl", rows), columns="", sections="loose", fractions="1,0,0")
    examples, reasons = made(config)
    assert reasons == {3: "missing_patient_id", 4: "bad_value", 5: "missing_report_file", 6: "no_image_path"}
    assert examples[1]["patient_id"] == examples[2]["patient_id"] == records.hashed_id("7")
    assert examples[1]["image_id"] == records.hashed_id("1")
    assert [example["labels"][5] for example in examples.values()] == [-1, -2]
    assert (examples[1]["findings"], examples[1]["impression"]) == ("Clear.", "Normal.")


def test_built_set(tmp_path, capsys):
    folder = prepare(
        "image_report_folder",
        tmp_path,
        name="dummy",
        manifest=str(DUMMY / "manifest.csv"),
        columns=COLUMNS,
        sections="mimic",
        size="64",
        public="true",
        workers=1,
        progress=False,
    )
    counts = json.loads((folder / "counts.json").read_text())
    assert {split: c["records"] for split, c in counts["splits"].items()} == {"train": 5, "validation": 2, "test": 1}
    assert counts["rejected"] == dict.fromkeys(sorted(FLAWS.values()), 1)
    assert counts["splits"]["train"]["public"] == 5
    printed = capsys.readouterr().out
    assert "section repeated in an addendum: 1" in printed
    assert "labels.Pleural Effusion=Effusion column" in printed
    record = records.RecordSource(tmp_path, "image_report_folder/dummy", "test")[0]
    assert record["findings"] == "Lungs are clear, heart is normal.\n No effusion."


def test_dummy_data_is_what_the_script_draws(tmp_path):
    make_dummy_data.write(tmp_path)
    assert (tmp_path / "manifest.csv").read_bytes() == (DUMMY / "manifest.csv").read_bytes()
    assert {p.name for p in (tmp_path / "img").iterdir()} == {p.name for p in (DUMMY / "img").iterdir()}
    assert sum(path.stat().st_size for path in DUMMY.rglob("*") if path.is_file()) < 300_000


@pytest.mark.parametrize(
    ("name", "columns", "splits", "reasons"),
    [
        (
            "covid_cxr",
            "findings=imaging_text,patient_id=patient_group",
            {"train": 155, "validation": 25, "test": 44},
            {"empty_report": 133},
        ),
        (
            "lungseg800",
            "findings=reading",
            {"train": 393, "validation": 57, "test": 116},
            {"empty_report": 138, "bad_split": 96},
        ),
    ],
)
def test_counts_of_real_folders(name, columns, splits, reasons):
    path = local_data(name) / "manifest.jsonl"
    config = dataclasses.replace(folder_set.CONFIG, manifest=str(path), columns=columns)
    plan = folder_set.plan(config)
    assert {split: len(items) for split, items in plan.splits.items()} == splits
    assert staging.count_reasons(plan.rejections) == reasons
    item = plan.splits["test"][0]
    ((_, example),) = folder_set.make_examples(item, config)
    assert images.read_image(example["image"]).shape == (256, 256)


def test_labels_by_rules_and_cleaning_through_prepare(tmp_path, capsys):
    """The settings of text, from the command line to the records and what is printed of them."""
    ellipse = (DUMMY / "img" / "a.png").read_bytes()
    texts = ["Small left effusion seen ___ ___. No pneumothorax.", "Clear lungs.", ""]
    rows = [{"image": f"{n}.png", "findings": text, "Edema": "0"} for n, text in enumerate(texts)]
    for row in rows:
        (tmp_path / row["image"]).write_bytes(ellipse)
    manifest_path = write_jsonl(tmp_path / "studies.jsonl", rows)
    words = ["--labels=rules", "--deid=drop", "--cleaning=gloria", "--sentences=gloria", "--empty_report=keep"]
    command = ["image_report_folder", "--manifest", manifest_path, "--data_dir", str(tmp_path / "data"), "--size=32"]
    assert prepare_main([*command, *words, "--fractions=1,0,0", "--workers=1"]) == 0
    printed = capsys.readouterr().out
    assert "labels by rules: 2, labels none, no text: 1" in printed
    assert "Pleural Effusion  1 +" in printed
    source = records.RecordSource(tmp_path / "data", "image_report_folder", "train")
    (effusion,) = (record for record in source if "effusion" in record["findings"])
    assert effusion["findings"] == "small left effusion seen no pneumothorax"
    assert effusion["sentences"] == ["small left effusion seen", "no pneumothorax"]
    assert labels.label_states(effusion["labels"]) == {"Pneumothorax": 0, "Pleural Effusion": 1}
    assert sorted(len(labels.label_states(record["labels"])) for record in source)[0] == 0
    assert json.loads((source.folder / "provenance.json").read_text())["config"]["labels"] == "rules"
