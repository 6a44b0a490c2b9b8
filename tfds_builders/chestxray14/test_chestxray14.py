"""ChestX-ray14 on drawn files, on the real tables and on the real images where they are at hand."""

import collections
import json

import numpy as np
import pytest

pytest.importorskip("tensorflow_datasets")

from medvlp_jax import prepare
from medvlp_jax.data import labels, records
from medvlp_jax.data.tables import Table
from tfds_builders.chestxray14 import chestxray14, make_dummy_data
from tfds_builders.testing import local_data, make, public_table


def test_every_row(tmp_path):
    make_dummy_data.write(tmp_path)
    made = make(chestxray14, root=str(tmp_path), size=64)
    assert set(made.splits["test"]) == {"00000007_000", "00000008_000"}
    assert sum(made.counts.values()) == 7
    assert made.reasons == {"bad_label": 1, "missing_file": 1}
    first = made.examples["00000001_000"]
    states = labels.label_states(first["labels"])
    assert (states["Cardiomegaly"], states["Pleural Effusion"], states["Lung Lesion"], states["No Finding"]) == (
        1,
        1,
        0,
        0,
    )
    assert "Pleural Other" not in states  # no thickening does not mean no other pleural finding
    assert made.own("00000001_000")["Hernia"] == 0
    assert labels.label_states(made.examples["00000001_001"]["labels"])["Pleural Other"] == 1
    assert first["patient_id"] == records.hashed_id("nih-00000001")
    (box,) = made.examples["00000004_000"]["boxes"]
    assert box["finding"] == "Infiltration"
    np.testing.assert_allclose(box["box"], [0.5, 0.25, 0.75, 0.375], atol=1e-6)
    assert [box["finding"] for box in made.examples["00000007_000"]["boxes"]] == ["Lung Lesion", "Pneumonia"]
    drawn = make(chestxray14, root=str(tmp_path), size=32, official_split=False)
    assert sum(drawn.counts.values()) == 7
    (tmp_path / "test_list.txt").unlink()
    with pytest.raises(ValueError, match="--official_split false"):
        make(chestxray14, root=str(tmp_path))


def test_prepared(tmp_path, capsys):
    make_dummy_data.write(tmp_path / "raw")
    command = ["chestxray14", "--root", str(tmp_path / "raw"), "--data_dir", str(tmp_path), "--size=32", "--workers=1"]
    assert prepare.main(command) == 0
    printed = capsys.readouterr().out
    assert "own: No Finding" in printed
    assert "official test list" in printed
    counts = json.loads((tmp_path / "chestxray14/default/1.0.0/counts.json").read_text())
    assert counts["splits"]["test"]["own_labels"]["Nodule"] == {"present": 1, "absent": 1, "uncertain": 0}
    record = records.RecordSource(tmp_path, "chestxray14", "test")[0]
    assert record["own_labels"]["name"][0] == "No Finding"
    assert record["own_labels"]["state"].dtype == np.int8


def test_real_tables():
    """Counts of the published label table and boxes."""
    table = Table(public_table("Data_Entry_2017_v2020.csv.gz"), ("Image Index", "Finding Labels", "Patient ID"))
    present, patients = collections.Counter(), set()
    for _, row in table:
        patients.add(row["Patient ID"])
        present.update(name for name, state in chestxray14.own_labels(row["Finding Labels"]).items() if state == 1)
    assert table.rejections == []
    assert len(table.columns) == 11
    assert len(patients) == 30_805
    assert sum(1 for _ in table) == 112_120
    assert set(present) == {"No Finding", *chestxray14.FINDINGS}
    boxes = chestxray14.read_boxes(public_table("BBox_List_2017.csv.gz"))
    assert len(boxes) == 880
    kinds = collections.Counter(box["finding"] for of_image in boxes.values() for box in of_image)
    assert kinds == {
        **{"Atelectasis": 180, "Pleural Effusion": 153, "Cardiomegaly": 146, "Infiltration": 123, "Pneumonia": 120},
        **{"Pneumothorax": 98, "Lung Lesion": 85 + 79},
    }


def test_real_images(tmp_path):
    """A thousand real images with the real tables: labels, views and boxes agree with what is known of them."""
    real = local_data("nih1000")
    for name in ("Data_Entry_2017_v2020.csv.gz", "BBox_List_2017.csv.gz"):
        (tmp_path / name).symlink_to(public_table(name))
    (tmp_path / "images").symlink_to(real / "images")
    known = [json.loads(line) for line in (real / "manifest.jsonl").read_text().splitlines()]
    plan = chestxray14.plan(
        chestxray14.NihConfig(name="x", root=str(tmp_path), official_split=False, fractions="1,0,0")
    )
    items = {item["image_id"]: item for item in plan.splits["train"]}
    assert len(items) == len(known) == 1000
    for entry in known:
        item = items[entry["image_id"]]
        own = {name for name, state in item["own_labels"].items() if state == 1}
        assert own == set(entry["labels"] or ["No Finding"])
        assert (item["view"], item["patient_id"]) == (entry["view"], chestxray14.patient_id(entry["patient_id"]))
        expected = [np.array([y, x, y + h, x + w]) / 320 for x, y, w, h in (b["box"] for b in entry["nih_boxes_xywh"])]
        np.testing.assert_allclose([box["box"] for box in item["boxes"]], expected or np.zeros((0,)), atol=2e-3)
    few = make(chestxray14, root=str(tmp_path), official_split=False, fractions="1,0,0", limit=8, size=64)
    assert few.counts == {"train": 8}
