"""Triplets from graphs and from rules. All texts and graphs are invented."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvlp_jax.data.triplets import (
    Triplet,
    entity_name,
    entity_text,
    exists_matrix,
    graph_triplets,
    positions_in,
    read_radgraph,
    triplets_of,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("left lower lobe", ["left lower lobe"]),
        ("bibasilar", ["bilateral base"]),
        ("pleural", ["pleura"]),
        ("left pleural", ["left pleura"]),
        ("left pleural at the base", ["left base"]),
        ("left base and right upper lobe", ["left base", "right upper lobe"]),
        ("on the right", ["right side"]),
        ("lungs bilaterally", ["bilateral lung"]),
        ("tip in the right atrium", ["right atrium"]),
        ("left line in the svc", ["superior vena cava"]),
        ("bilaterally", ["both sides"]),
        ("perihilar", ["hilum"]),
        ("somewhere", []),
        ("", []),
    ],
)
def test_positions(text, expected):
    assert positions_in(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Small left pleural effusion.", [("Pleural Effusion", "left pleura", 1)]),
        (
            "No focal consolidation, pleural effusion, or pneumothorax.",
            [
                ("Consolidation", "unspecified", 0),
                ("Pleural Effusion", "pleura", 0),
                ("Pneumothorax", "unspecified", 0),
            ],
        ),
        (
            "Opacities in the left base and right upper lobe.",
            [("Lung Opacity", "left base", 1), ("Lung Opacity", "right upper lobe", 1)],
        ),
        (
            "Bibasilar atelectasis with right apical pneumothorax.",
            [("Atelectasis", "bilateral base", 1), ("Pneumothorax", "right apex", 1)],
        ),
        ("Possible pneumonia in the lingula.", [("Pneumonia", "lingula", -1)]),
        ("The heart is enlarged.", [("Cardiomegaly", "heart", 1)]),
        ("Small effusion. Small effusion.", [("Pleural Effusion", "unspecified", 1)]),
        ("Thoracic scoliosis.", []),
        (
            "Consolidation and atelectasis are present in the left base.",
            [("Consolidation", "left base", 1), ("Atelectasis", "left base", 1)],
        ),
        ("Minimal opacities in the lung bases.", [("Lung Opacity", "bilateral base", 1)]),
        (
            "No effusion or pneumothorax at the left apex.",
            [("Pleural Effusion", "unspecified", 0), ("Pneumothorax", "left apex", 0)],
        ),
    ],
)
def test_triplets_by_rules(text, expected):
    assert triplets_of(text) == [Triplet(*triplet) for triplet in expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "Small effusion, no pneumothorax. The trachea is midline. Possible pneumonia.",
            "[ENT] effusion Observation Definitely Present [ENT] pneumothorax Observation Definitely Absent [SEP] "
            "[ENT] pneumonia Observation Uncertain",
        ),
        ("Frontal view. Unchanged.", "frontal view. [SEP] unchanged."),
        ("", ""),
    ],
)
def test_text_of_entities(text, expected):
    assert entity_text(text) == expected


def entity(tokens, label, start, *relations):
    return {"tokens": tokens, "label": label, "start_ix": start, "end_ix": start, "relations": [*relations]}


GRAPH = {
    "1": entity("Small", "OBS-DP", 0, ["modify", "3"]),
    "2": entity("left", "ANAT-DP", 1, ["modify", "4"]),
    "3": entity("effusion", "OBS-DP", 3, ["located_at", "4"]),
    "4": entity("pleural", "ANAT-DP", 2),
    "5": entity("pneumothorax", "OBS-DA", 6),
    "6": entity("pneumonia", "OBS-U", 9, ["located_at", "7"]),
    "7": entity("lobe", "ANAT-DP", 12),
    "8": entity("lower", "ANAT-DP", 11, ["modify", "7"]),
    "9": entity("right", "ANAT-DP", 10, ["modify", "8"]),
    "10": entity("hernia", "OBS-DP", 14, ["located_at", "11"]),
    "11": entity("hiatus", "ANAT-DP", 13),
}


def test_triplets_of_a_graph():
    assert graph_triplets(GRAPH) == [
        Triplet("Pleural Effusion", "left pleura", 1),
        Triplet("Pneumothorax", "unspecified", 0),
        Triplet("Pneumonia", "right lower lobe", -1),
        Triplet("hernia", "other", 1),
    ]


def test_graph_file(tmp_path):
    newer = {"1": entity("Effusions", "Observation::definitely absent", 0)}
    path = tmp_path / "graphs.json"
    path.write_text(json.dumps({"p10/a.txt": {"entities": GRAPH}, "p10/b.txt": {"text": "x", "entities": newer}}))
    found = dict(read_radgraph(path))
    assert len(found["p10/a.txt"]) == 4
    assert found["p10/b.txt"] == [Triplet("Pleural Effusion", "unspecified", 0)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "holds a list"),
        ('{"p1000/secret": {"text": "Mrs. Roe"}}', "Report 1 of bad.json has no object 'entities'"),
        ('{"k": {"entities": {"1": {"tokens": "x"}}}}', "tokens, label, start_ix and relations"),
        (json.dumps({"k": {"entities": {"1": entity("x", "DX", 0)}}}), "label 'DX' is none of"),
        (json.dumps({"k": {"entities": {"1": entity("x", "OBS-DP", 0, ["located_at", "9"])}}}), "cannot be read"),
    ],
)
def test_a_bad_graph_file_is_named_without_its_content(tmp_path, content, message):
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        list(read_radgraph(path))
    assert "secret" not in str(error.value)
    assert "Roe" not in str(error.value)


def test_no_graph_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        list(read_radgraph(tmp_path / "none.json"))


def test_relations_in_a_circle_end():
    circle = {
        "1": entity("base", "ANAT-DP", 0, ["modify", "2"]),
        "2": entity("left", "ANAT-DP", 1, ["modify", "1"]),
        "3": entity("opacity", "OBS-DP", 2, ["located_at", "1"]),
    }
    assert graph_triplets(circle) == [Triplet("Lung Opacity", "left base", 1)]


@pytest.mark.parametrize(
    ("words", "name"), [("Effusions", "Pleural Effusion"), ("PNEUMONIA", "Pneumonia"), ("hernia", "hernia")]
)
def test_entity_names(words, name):
    assert entity_name(words) == name


def test_matrix_fill_rules():
    entities, positions = ["Edema", "Pneumonia"], ["lung", "other"]
    absent, present, unsure = (Triplet("Edema", "lung", state) for state in (0, 1, -1))

    def edema(*triplets):
        return exists_matrix(triplets, entities, positions)[0][0, 0]

    assert edema() == edema(unsure) == -1
    assert edema(absent) == edema(absent, unsure) == 0
    assert edema(absent, present) == edema(present, absent) == edema(present, unsure) == 1
    matrix, left_out = exists_matrix(
        [Triplet("Pneumonia", "left base", 1), Triplet("hernia", "lung", 1)], entities, positions
    )
    assert matrix.dtype == np.int8
    assert matrix.tolist() == [[-1, -1], [-1, 1]]
    assert left_out == {"unknown entity": 1}
    assert exists_matrix([Triplet("Edema", "left base", 1)], entities, ["lung"])[1] == {"unknown position": 1}


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.lists(st.sampled_from(["no", "left", "base", "effusion", ",", "or", "pneumonia", ".", "lung", "with"])))
def test_any_words_give_triplets_with_a_position(words):
    for triplet in triplets_of(" ".join(words)):
        assert triplet.position
        assert triplet.exists in (1, 0, -1)
