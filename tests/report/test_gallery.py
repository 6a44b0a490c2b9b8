"""Pictures of a real, if untrained, checkpoint over phantoms: cards, maps, cache, and what stays private."""

import base64
import json

import cv2
import fabricated
import numpy as np
import pytest
import tiny

from medvlp_jax.data.records import RecordSource
from medvlp_jax.report import gallery as galleries
from medvlp_jax.report import page, pool
from medvlp_jax.trained import open_run


def silent(line):
    pass


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def checkpoint(data, tmp_path_factory):
    return tiny.make_run(data, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def embedded(checkpoint, data):
    """What the model makes of the test split, computed once."""
    source = RecordSource(data, "cxr_phantom/tiny", "test")
    return pool.embed(open_run(checkpoint, data_dir=data), source, say=silent)


@pytest.fixture(scope="module")
def made(checkpoint, data, embedded):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "embed", lambda *_, **__: embedded)
        patch.setattr(galleries, "MINIMUM", 2)  # a test split of a dozen images
        return galleries.gallery(checkpoint, step=None, data_dir=data, say=silent)


@pytest.fixture(scope="module")
def records(data):
    source = RecordSource(data, "cxr_phantom/tiny", "test")
    return [source[i] for i in range(len(source))]


def picture(text):
    return cv2.imdecode(np.frombuffer(base64.b64decode(text), np.uint8), cv2.IMREAD_COLOR)


def test_cards_tell_what_the_records_and_the_model_say(made, records):
    assert made["pool"] == made["records"] == made["public"] == len(records)
    assert len(made["cards"]) == min(12, len(records))
    assert len({card["record"] for card in made["cards"]}) == len(made["cards"])
    for card in made["cards"]:
        record = records[card["record"]]
        assert card["texts"] == {s: record[s] for s in ("findings", "impression") if record[s]}
        assert picture(card["picture"]).shape[:2] == (256, 256)
        assert 1 <= card["rank"] <= card["candidates"]
        assert [row["state"] for row in card["zero_shot"]] == [None if s == -2 else s for s in record["labels"]]
        assert all(0 <= row["percentile"] <= 100 and 0 < row["score"] < 1 for row in card["zero_shot"])
        own = [place for place, text in enumerate(card["retrieved"], 1) if text["own"]]
        assert own == ([round(card["rank"])] if card["rank"] <= len(card["retrieved"]) else [])
        for heat in card["maps"]:
            assert picture(heat["picture"]).shape[:2] == (256, 256)
            assert heat["low"] <= heat["high"]
            boxed = [f for f in record["boxes"]["finding"] if f == heat["finding"]]
            assert heat["boxes"] == len(boxed)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_reports_that_the_model_reads_nothing_of_are_no_candidates(embedded, checkpoint, data):
    blank_N = embedded.report_N == embedded.report_N[0]
    parts = [(image, text, has & ~blank_N) for image, text, has in embedded.parts]
    cards = galleries._cards(embedded._replace(parts=parts), open_run(checkpoint, data_dir=data))
    for card in cards:
        assert (card["rank"] is None) == bool(blank_N[card["record"]])
        assert card["candidates"] == len(set(embedded.report_N)) - 1
        assert all(np.isfinite(text["score"]) for text in card["retrieved"])
    assert any(card["rank"] is None for card in cards)


def test_vectors_scores_and_maps_agree(embedded, records):
    assert embedded.section == "impression"
    assert embedded.public_N.all()
    assert embedded.score_NxF.shape == (len(records), 14)
    assert embedded.map_NxhxwxF.shape[0] == len(records)
    assert np.isfinite(embedded.map_NxhxwxF).all()
    same = [[a["findings"] == b["findings"] and a["impression"] == b["impression"] for b in records] for a in records]
    assert (np.equal.outer(embedded.report_N, embedded.report_N) == same).all()
    for (_, _, has_N), section in zip(embedded.parts, ("findings", "impression"), strict=True):
        assert has_N.tolist() == [bool(record[f"has_{section}"]) for record in records]


def test_the_embedding_map_covers_every_image(made, records):
    assert len(made["map"]["points"]) == len(records)
    assert all(0 <= value <= 1000 for point in made["map"]["points"] for value in point)
    for name, rows in made["map"]["present"].items():
        position = next(i for i, row in enumerate(made["cards"][0]["zero_shot"]) if row["finding"] == name)
        assert rows == [i for i, record in enumerate(records) if record["labels"][position] == 1]


def test_a_kept_gallery_is_used_and_holds_no_ids(made, checkpoint, data, records, monkeypatch):
    text = (checkpoint / "gallery.json").read_text()
    assert json.loads(text) == made
    for record in records:
        assert not any(str(int(record[name])) in text for name in ("patient_id", "study_id", "image_id"))
    monkeypatch.setattr(pool, "embed", lambda *_, **__: pytest.fail("embedded again"))
    assert galleries.gallery(checkpoint, step=4, data_dir=data, say=silent) == made


def test_the_report_shows_them(made, checkpoint, data, tmp_path):
    text = page.write_report([checkpoint], tmp_path / "report.html", data_dir=data, say=silent).read_text()
    assert text.count("<article") == len(made["cards"])
    assert text.count("data:image/jpeg;base64,") == sum(1 + len(card["maps"]) for card in made["cards"])
    assert "scores.json is not there" in text


@pytest.mark.parametrize("public", ["none", "every other"])
def test_records_that_are_not_public_leave_no_trace(checkpoint, data, embedded, records, public, monkeypatch, tmp_path):
    shown = {i for i in range(len(records)) if public == "every other" and i % 2}
    public_N = np.array([i in shown for i in range(len(records))])
    monkeypatch.setattr(pool, "embed", lambda *_, **__: embedded._replace(public_N=public_N))
    monkeypatch.setattr(galleries, "FILE", f"{public}.json")
    text = page.write_report([checkpoint], tmp_path / "report.html", data_dir=data, say=silent).read_text()
    kept = json.loads((checkpoint / f"{public}.json").read_text())
    assert {card["record"] for card in kept["cards"]} <= shown
    public_texts = {records[i][s] for i in shown for s in ("findings", "impression")}
    for record in records:
        for section in ("findings", "impression"):
            if record[section] and record[section] not in public_texts:
                assert json.dumps(record[section])[1:-1] not in json.dumps(kept)
    if not shown:
        assert galleries.NOT_PUBLIC in text
        assert "<img" not in text
        assert kept["cards"] == []
        assert kept["map"] is None


def test_missing_data_or_checkpoint_is_said(checkpoint, data, tmp_path, monkeypatch):
    monkeypatch.setattr(galleries, "FILE", "other.json")
    empty = fabricated.make_run(tmp_path / "empty", config=json.loads((checkpoint / "config.json").read_text()))
    text = page.write_report([empty], data_dir=data, say=silent).read_text()
    assert "No pictures: checkpoint, data or text tower are not at hand." in text
    monkeypatch.setattr(RecordSource, "__init__", lambda *_: (_ for _ in ()).throw(FileNotFoundError("no data here")))
    text = page.write_report([checkpoint], tmp_path / "x.html", data_dir=data, say=silent).read_text()
    assert "no data here" in text


def test_a_folder_that_cannot_be_written_costs_only_the_cache(checkpoint, data, embedded, monkeypatch):
    said = []
    monkeypatch.setattr(pool, "embed", lambda *_, **__: embedded)
    monkeypatch.setattr(galleries, "FILE", "no/such/folder.json")
    assert galleries.gallery(checkpoint, step=4, data_dir=data, say=said.append)["cards"]
    assert "is not kept" in said[-1]
