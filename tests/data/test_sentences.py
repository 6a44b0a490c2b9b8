"""Sentence splitting. All texts are invented."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvlp_jax.data.sentences import RULES, split_sentences

LIST = "1. Mild edema is seen today. 2. No pleural effusion is seen."
DECIMAL = "There is a 2.5 cm mass on the left. No change since the last study."


@pytest.mark.parametrize("rule", ["gloria", "medclip", "simple"])
def test_list_markers_are_removed(rule):
    found = split_sentences(LIST, rule)
    assert len(found) == 2
    assert not any(character.isdigit() for sentence in found for character in sentence)


def test_short_sentences_by_rule():
    text = "1. Mild edema. 2. No effusion."
    assert split_sentences(text, "gloria") == ["mild edema", "no effusion"]
    assert split_sentences(text, "medclip") == []
    assert split_sentences(text, "medclip", min_tokens=2) == ["mild edema", "no effusion ."]
    assert split_sentences("Normal.", "medclip") == split_sentences("Normal.", "gloria") == []
    assert split_sentences("Normal.") == ["Normal."]
    assert split_sentences("Normal. Heart is normal.", min_tokens=3) == ["Heart is normal."]


def test_decimals():
    assert split_sentences(DECIMAL) == ["There is a 2.5 cm mass on the left.", "No change since the last study."]
    assert len(split_sentences(DECIMAL, "medclip")) == 2
    assert split_sentences(DECIMAL, "gloria")[:2] == ["there is a", "5 cm mass on the left"]


def test_medclip_takes_a_final_year_for_a_list_marker():
    text = "Prior film was made in 2011. Lungs are clear on both sides."
    assert split_sentences(text, "medclip") == ["prior film was made in", "lungs are clear on both sides ."]
    assert split_sentences(text)[0].endswith("2011.")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Dr. ___ was called at 3 p.m. Pneumothorax is new.", ["Dr. ___ was called at 3 p.m.", "Pneumothorax is new."]),
        ("Seen at 3 p.m. by the resident. Stable.", ["Seen at 3 p.m. by the resident.", "Stable."]),
        ("No effusion.\nHeart normal", ["No effusion.", "Heart normal"]),
        ("Heart\nis normal.", ["Heart is normal."]),
        ("Lungs clear\n \nHeart normal", ["Lungs clear", "Heart normal"]),
        ("Lungs ... are clear. Stable.", ["Lungs ... are clear.", "Stable."]),
        ("Small effusion... No edema.", ["Small effusion...", "No edema."]),
        ("- clear lungs\n- normal heart", ["clear lungs", "normal heart"]),
        ("1) Edema\n2) Effusion", ["Edema", "Effusion"]),
        ("No. 3 rib is broken.", ["No. 3 rib is broken."]),
        ("Effusion: no. Edema: yes.", ["Effusion: no.", "Edema: yes."]),
        ("Approx. 3 cm vs. 2 cm before.", ["Approx. 3 cm vs. 2 cm before."]),
        ("lungs clear. heart normal.", ["lungs clear.", "heart normal."]),
        ("Read by J. Smith. Edema?", ["Read by J. Smith.", "Edema?"]),
        ("Is it new? Compare! (See film.) Done.", ["Is it new?", "Compare!", "(See film.)", "Done."]),
        ("XXXX XXXX. Stable.", ["XXXX XXXX.", "Stable."]),
        ("---", []),
        ("___", []),
        ("", []),
    ],
)
def test_simple(text, expected):
    assert split_sentences(text) == expected


def test_accented_words():
    text = "Cardiomégalie modérée"
    assert split_sentences(text) == [text]
    assert split_sentences(text, "gloria") == ["cardiomgalie modre"]
    assert split_sentences("Été à Paris où", "medclip") == []


@pytest.mark.parametrize("rule", RULES)
def test_text_without_words_has_no_sentences(rule):
    assert split_sentences("---\n...", rule) == []


def test_unknown_rule_and_length():
    with pytest.raises(ValueError, match="simple, gloria, medclip"):
        split_sentences("a", "nltk")
    with pytest.raises(ValueError, match="min_tokens=0"):
        split_sentences("a", min_tokens=0)


@settings(derandomize=True, deadline=None)
@given(st.text(alphabet=st.sampled_from("aB1. \n!?_-()é,p.m")))
def test_simple_loses_only_blanks_and_list_markers(text):
    found = split_sentences(text)
    letters = [character for character in "".join(found) if character.isalpha()]
    assert letters == [character for character in text if character.isalpha()]
    for sentence in found:
        assert sentence == " ".join(sentence.split())


@settings(derandomize=True, deadline=None)
@given(st.text())
def test_every_rule_takes_any_text(text):
    for rule in RULES:
        assert all(sentence.strip() for sentence in split_sentences(text, rule))


REAL = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "iu_xray_reports" / "reports.jsonl"


def test_real_reports_lose_no_letter():
    if not REAL.exists():
        pytest.skip("the Open-i reports are not beside the repository")
    count, changed = 0, []
    for row in REAL.read_text(encoding="utf-8").splitlines():
        report = json.loads(row)
        for section in ("findings", "impression"):
            text = report[section] or ""
            found = split_sentences(text)
            count += len(found)
            letters = [character for character in " ".join(found) if character.isalpha()]
            if letters != [character for character in text if character.isalpha()]:
                changed.append(report["uid"])
    assert count == 22838
    assert changed == []
