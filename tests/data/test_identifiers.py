"""Planted identifiers and texts are found, and told without their words. All names, numbers and texts are invented."""

import base64
import json

import pytest

from medvlp_jax.data import identifiers
from medvlp_jax.data.identifiers import Sensitive, search
from medvlp_jax.data.records import hashed_id

TEXT = "There is a peculiar spiculated opacity behind the third left rib, measuring 14 mm in the longest diameter."


def record(study, text=TEXT, public=False):
    return {
        "public": public,
        "study_id": hashed_id(str(study)),
        "findings": text,
        "impression": "",
        "report": f"FINDINGS: {text}",
    }


@pytest.fixture
def sensitive():
    made = Sensitive()
    made.add(record(1), ("p10000032", "s50414267", "files/p10/02aa804e.jpg"))
    return made


def kinds(tmp_path, content, sensitive, name="out.txt", **more):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    finds, _ = search([path], sensitive, base=tmp_path, **more)
    return [(find.line, find.kind) for find in finds]


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("MRN: 0048213", "record number"),
        ("Medical record number 5582913", "record number"),
        ("DOB 1951-03-14", "date of birth"),
        ("taken on 03/14/2011 at noon", "date"),
        ("StudyDate 2180-05-06", "date"),
        ("Patient name: Quartermain", "name"),
        ("seen by Dr. Quartermain", "name"),
        ("QUARTERMAIN^ZEBULON", "name"),
        ("subject p10000032 again", "raw id"),
        ("files/p10/02aa804e.jpg", "raw id"),
        ("see 02aa804e.", "raw id"),
        (TEXT, "report text"),
        ("spiculated opacity behind the third left rib, measuring", "report text"),
        (f"<p>{TEXT.replace('left rib', '<b>left</b> rib')}</p>", "report text"),
        (json.dumps({"text": TEXT.replace(" ", "\n", 4)}), "report text"),
    ],
)
def test_planted(tmp_path, sensitive, line, kind):
    assert (2, kind) in kinds(tmp_path, f"first line\n{line}\nlast line", sensitive)


@pytest.mark.parametrize(
    "line",
    [
        "2026-11-26 13:41:06 step 400 loss 0.31",
        "the left lung is clear",
        "a peculiar spiculated opacity",
        "version 1.0.0, 10000 records",
        "subject p1000003",
        base64.b64encode(TEXT.encode() * 20).decode(),
    ],
)
def test_harmless(tmp_path, sensitive, line):
    assert kinds(tmp_path, line, sensitive) == []


def test_text_that_runs_over_lines_is_found(tmp_path, sensitive):
    assert kinds(tmp_path, TEXT.replace(" ", "\n"), sensitive)[0][1] == "report text"


def test_planted_words(tmp_path, sensitive):
    words = tmp_path / "words"
    words.write_text("# people\nQuartermain\n")
    planted = identifiers.read_planted(words)
    assert kinds(tmp_path, "by quartermain", sensitive, planted=planted) == [(1, "planted word")]
    words.write_text("# nobody\n")
    with pytest.raises(ValueError, match="no word to look for"):
        identifiers.read_planted(words)


def test_common_phrases_and_public_texts_are_no_find(tmp_path):
    made = Sensitive()
    for study in range(identifiers.COMMON):
        made.add(record(study), None)
    assert kinds(tmp_path, TEXT, made) == []
    made = Sensitive()
    made.add(record(1, public=True), ("p10000032", "s1", "i1"))
    assert kinds(tmp_path, f"{TEXT} p10000032", made) == []


def test_two_images_of_a_study_count_once(tmp_path):
    made = Sensitive()
    for _ in range(identifiers.COMMON):
        made.add(record(1), None)
    assert kinds(tmp_path, TEXT, made) == [(1, "report text")]


def test_parts_of_paths_that_many_ids_share_are_no_find(tmp_path):
    made = Sensitive()
    for patient in ("patient00001", "patient00002"):
        for view in ("view1_frontal", "view2_lateral"):
            made.add(record(patient), (f"set/{patient}", f"set/{patient}/study1", f"set/{patient}/study1/{view}"))
    assert kinds(tmp_path, "study1 view1_frontal", made) == []
    assert kinds(tmp_path, "see patient00002", made) == [(1, "raw id")]


def test_files(tmp_path, sensitive):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.txt").write_text("p10000032")
    (tmp_path / "run" / "weights.npz").write_bytes(b"p10000032")
    finds, counts = search(identifiers.files_under(tmp_path), sensitive, base=tmp_path)
    assert [find.file for find in finds] == ["run/log.txt"]
    assert counts == {"read": 1, "not a text file": 1}
    assert search([tmp_path / "run" / "log.txt"], sensitive, ids=False)[0] == []
    with pytest.raises(FileNotFoundError, match="No output"):
        list(identifiers.files_under(tmp_path / "nothing"))
