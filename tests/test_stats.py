"""Statistics of a data set: numbers, tables, page; nothing of records that are not public. All texts are invented."""

import base64
import json

import numpy as np
import pytest

from medvlp_jax import stats
from medvlp_jax.data import images, statistics
from medvlp_jax.data.labels import label_vector
from medvlp_jax.report import data_page

SECRET = "Zebulon Quartermain was seen"


def record(number, *, public=False, findings="", impression="", labels=None, **more):
    rng = np.random.default_rng(number)
    return {
        "image": images.encode_png(rng.integers(0, 255, (24, 32)).astype(np.uint8)),
        "findings": findings,
        "impression": impression,
        "report": "",
        "has_findings": bool(findings),
        "has_impression": bool(impression),
        "sentences": [findings] if findings else [],
        "labels": label_vector(labels or {}),
        "view": "PA",
        "patient_id": number // 4,
        "study_id": number // 2,
        "image_id": number,
        "boxes": {"box": np.zeros((0, 4)), "finding": [], "sentence": np.zeros(0, np.int32)},
        "masks": {"mask": [], "finding": []},
        "lung_mask": b"",
        "public": public,
        **more,
    }


RECORDS = [
    record(0, findings=SECRET, labels={"Edema": 1, "Fracture": 1}, age=71, sex="F"),
    record(1, findings=SECRET, labels={"Edema": 1, "Fracture": 0}, age=90, sex=""),
    record(2, findings=SECRET, impression="Two words", labels={"Edema": -1}, age=-1, sex="M"),
    None,
    record(5, image=b"not an image", own_labels={"name": ["Hernia"], "state": [1]}),
]


def test_numbers():
    found = statistics.describe(RECORDS, count_tokens=len)
    assert (found["records"], found["unreadable"], found["unreadable_image"]) == (4, 1, 1)
    assert (found["studies"], found["patients"]) == (3, 2)
    assert found["images_per_study"] == {"count": 3, "min": 1, "median": 1, "mean": 1.33, "p95": 2, "max": 2}
    assert found["labels"]["Edema"] == {"present": 2, "absent": 0, "uncertain": 1, "not_mentioned": 1}
    assert found["own_labels"] == {"Hernia": {"present": 1}}
    edema, fracture = 5, 12
    together = np.array(found["together"])
    assert (together[edema, edema], together[edema, fracture], together[fracture, edema]) == (2, 1, 1)
    assert found["sections"]["findings"]["present"] == 3
    assert found["sections"]["findings"]["words"]["summary"]["max"] == 4
    assert found["sections"]["findings"]["tokens"]["summary"]["max"] == len(SECRET)
    assert found["sections"]["impression"]["words"]["summary"]["count"] == 1
    assert found["texts"] == {"studies_with_text": 2, "distinct": 2, "repeated": 0}
    assert found["views"] == {"PA": 4}
    assert found["ages"]["summary"]["count"] == 2
    assert found["ages"]["decades"] == {"70–79": 1, "90+": 1, "not known": 2}
    assert found["sexes"] == {"not known": 2, "F": 1, "M": 1}
    assert found["image_sizes"] == {"32 × 24": 3}
    assert json.loads(json.dumps(found)) == found
    assert "Zebulon" not in json.dumps(found)


def test_ages_and_sexes_are_printed_where_any_is_known():
    splits = {"train": statistics.describe(RECORDS, len), "test": statistics.describe([record(9)], len)}
    lines = stats.tables(splits, "phantom")
    cells = {line.rsplit(maxsplit=2)[0]: line.split()[-2:] for line in lines if line.startswith(("sex", "age"))}
    assert cells == {
        "sex F": ["1", "0"],
        "sex M": ["1", "0"],
        "sex not known": ["2", "1"],
        "age 70–79": ["1", "0"],
        "age 90+": ["1", "0"],
        "age not known": ["2", "0"],
    }
    lines = stats.tables({"train": statistics.describe([record(9)])}, "phantom")
    assert not [line for line in lines if line.startswith(("sex", "age"))]


def test_texts_of_two_studies_that_are_equal_are_counted():
    found = statistics.describe([record(0, findings="A  b."), record(2, findings="a b."), record(4, findings="c")])
    assert found["texts"] == {"studies_with_text": 3, "distinct": 2, "repeated": 2}


def test_labels_in_the_words_of_the_set_are_printed():
    names = [f"Finding {number:02}" for number in range(stats.OWN_LABELS + 2)]
    found = statistics.describe([record(0, own_labels={"name": names, "state": [1] * len(names)})])
    lines = stats.tables({"train": found}, "phantom")
    assert any(line.startswith("Finding 00") and line.endswith("1") for line in lines)
    assert "(2 more in --json and --html)" in lines


def test_nothing_to_describe():
    found = statistics.describe([])
    assert found["records"] == 0
    assert found["sections"]["findings"]["characters"] == {"summary": {"count": 0}, "edges": [], "counts": []}
    assert stats.tables({"train": found}, "phantom")


@pytest.mark.parametrize("values", [[0], [1, 1, 2], [5000, 3], list(range(1000))])
def test_histogram_holds_every_value(values):
    bars = statistics.histogram(values)
    assert sum(bars["counts"]) == len(values)
    assert len(bars["edges"]) == len(bars["counts"]) + 1 <= statistics.HISTOGRAM_BARS + 2
    assert bars["edges"][0] == 0
    assert bars["edges"][-1] > max(values)


def test_page_shows_public_records_alone(tmp_path):
    found = {"train": statistics.describe(RECORDS, count_tokens=len)}
    open_record = record(7, public=True, findings="Clear <b>lungs</b>.", labels={"Edema": 0})
    open_record |= {"age": 90, "sex": "M"}
    shown = data_page.samples([RECORDS[0], open_record])
    assert len(shown) == 1
    text = data_page.write_data_page(tmp_path / "page.html", "ours", found, shown, "phantom").read_text()
    assert "Clear &lt;b&gt;lungs" in text
    assert "Zebulon" not in text
    assert "PA, male, 90 years or more" in text
    assert text.count("data:image/jpeg;base64") == 1
    assert base64.b64encode(RECORDS[0]["image"]).decode()[:60] not in text
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "https://" not in text
    hidden = data_page.write_data_page(tmp_path / "hidden.html", "ours", found, [], "phantom").read_text()
    assert data_page.NOT_PUBLIC in hidden
    assert "data:image" not in hidden


def test_command(tmp_path, monkeypatch, capsys):
    class Source(list):
        split = "train"

    monkeypatch.setattr(
        stats, "sources_of", lambda data_dir, name: {"train": Source([record(0, public=True, findings="Clear.")])}
    )
    out = [str(tmp_path / name) for name in ("out.json", "out.html")]
    assert stats.main(["ours", "--json", out[0], "--html", out[1]]) == 0
    printed = capsys.readouterr().out
    assert "train findings" in printed
    assert "Clear." not in printed
    assert json.loads((tmp_path / "out.json").read_text())["splits"]["train"]["records"] == 1
    assert "Clear." in (tmp_path / "out.html").read_text()
    assert stats.main(["ours", "--json", str(tmp_path / "no" / "such.json")]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_a_record_that_cannot_be_read_is_counted(capsys):
    class Broken(list):
        split = "train"

        def __getitem__(self, index):
            raise RuntimeError("bad bytes")

    found = statistics.describe(stats.readable(Broken([0, 1]), progress=False, what="reading"))
    assert (found["records"], found["unreadable"]) == (0, 2)


def test_a_data_set_that_is_not_prepared(tmp_path, capsys):
    assert stats.main(["cxr_phantom", "--data_dir", str(tmp_path)]) == 1
    assert "python -m medvlp_jax.prepare cxr_phantom" in capsys.readouterr().err
