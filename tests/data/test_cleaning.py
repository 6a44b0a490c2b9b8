"""Cleaning rules and the texts of published methods. All texts are invented."""

import json
import math
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvlp_jax.data import cleaning, sections
from medvlp_jax.data.cleaning import clean
from medvlp_jax.data.method_texts import METHOD_TEXTS, UNITS, method_text, units_of
from medvlp_jax.data.sentences import RULES, split_sentences

TEXT = "FINDINGS: 1. Small\n  effusion, 2.5 cm (new). Cardiomégalie."


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("none", TEXT),
        ("collapse", "FINDINGS: 1. Small effusion, 2.5 cm (new). Cardiomégalie."),
        ("gloria", "findings 1 small effusion 2 5 cm new cardiomgalie"),
        ("medclip", "findings : 1 . small effusion , 2 . 5 cm ( new ). cardiomgalie ."),
        ("g2d", "Small effusion, 2.5 cm (new). Cardiomégalie."),
        ("blip2", "findings 1 small effusion, 2 5 cm new cardiomégalie"),
    ],
)
def test_rules(rule, expected):
    assert clean(TEXT, rule) == expected


def test_blip2_keeps_fifty_words():
    assert len(clean("word " * 70, "blip2").split()) == 50


@pytest.mark.parametrize(
    ("text", "dropped", "unified"),
    [
        ("Dr. ___ was called.", "Dr. was called.", "Dr. [W] was called."),
        ("XXXX XXXX. Stable.", ". Stable.", "[W]. Stable."),
        ("Normal chest x-XXXX.", "Normal chest x-.", "Normal chest x-[W]."),
        ("seen by ___ ___ at ___", "seen by at", "seen by [W] at [W]"),
        ("Port [**2101-1-1**] tip", "Port tip", "Port [W] tip"),
        ("no marks  here", "no marks  here", "no marks  here"),
        (" \n " + "_" * 20 + "\n ___ late", " \n " + "_" * 20 + "\n  late", " \n " + "_" * 20 + "\n [W] late"),
    ],
)
def test_removed_words(text, dropped, unified):
    assert cleaning.mark_removed_words(text) == text
    assert cleaning.mark_removed_words(text, "drop") == dropped
    assert cleaning.mark_removed_words(text, "unify", "[W]") == unified


def test_removed_words_before_a_rule():
    assert clean("The ___ XXXX heart", "gloria", deid="unify", placeholder="[DEID]") == "the deid heart"
    assert clean("The ___ heart", "gloria", deid="drop") == "the heart"


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match="none, collapse, gloria"):
        clean("a", "lower")
    with pytest.raises(ValueError, match="keep, drop, unify"):
        clean("a", deid="mask")
    with pytest.raises(ValueError, match="convirt, gloria, mgca"):
        units_of("a", "b", "clip")
    with pytest.raises(ValueError, match="Stanza"):
        split_sentences("a", "stanza")


@settings(derandomize=True, deadline=None, max_examples=50)
@given(
    st.one_of(
        st.text(), st.lists(st.sampled_from(["___", "XXXX", " ", "\n", "a", ".", "1.", "FINDINGS:"])).map("".join)
    )
)
def test_any_text_can_be_cleaned(text):
    for rule in cleaning.RULES:
        for deid in cleaning.DEID:
            once = clean(text, rule, deid=deid)
            assert isinstance(once, str)
    assert clean(clean(text), "collapse") == clean(text)
    for method in METHOD_TEXTS:
        assert all(unit.strip() for unit in units_of(text, text, method))


FINDINGS = "Dr. ___ saw a 2.5 cm mass on the left today. Heart is normal."
IMPRESSION = "1. Mild edema is seen today. 2. No pleural effusion is seen."


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("imitate", [FINDINGS, IMPRESSION]),
        ("lovt", [f"{FINDINGS} {IMPRESSION}"]),
        ("mflag", [f"{IMPRESSION} {FINDINGS}"]),
        ("g2d", [f"Mild edema is seen today. No pleural effusion is seen. {FINDINGS}"]),
        ("chexzero", [IMPRESSION]),
        ("gloria", ["mild edema is seen today", "no pleural effusion is seen"]),
        (
            "mgca",
            [
                "mild edema is seen today no pleural effusion is seen ___ saw a 5 cm mass on the left today heart is "
                "normal"
            ],
        ),
        ("medclip_old", ["5 cm mass on the left today", "mild edema is seen today", "no pleural effusion is seen"]),
        ("cxr_clip", [FINDINGS]),
    ],
)  # fmt: skip
def test_what_methods_see(method, expected):
    found = units_of(FINDINGS, IMPRESSION, method)
    assert found == expected


@pytest.mark.parametrize("missing", [None, math.nan, "", " "])
@pytest.mark.parametrize("method", METHOD_TEXTS)
def test_missing_sections(method, missing):
    neither = units_of(missing, missing, method)
    assert neither == (["NO IMPRESSION"] if method == "chexzero" else [])
    only_findings = units_of("The heart is clearly enlarged today.", missing, method)
    expected = {"gloria": [], "chexzero": ["NO IMPRESSION"]}.get(method)
    assert only_findings == expected if expected is not None else len(only_findings) == 1


def test_short_reports():
    assert units_of("", "Normal.", "lovt") == units_of("", "Normal chest.", "mgca") == []
    assert units_of("", "Normal.", "imitate") == ["Normal."]


def test_entries_name_what_exists():
    for method in METHOD_TEXTS:
        entry = method_text(method)
        assert entry.unit in UNITS
        assert entry.policy in sections.POLICIES
        assert entry.cleaning in cleaning.RULES
        assert entry.sentences in ("", *RULES)
        assert set(entry.sections) <= {"findings", "impression"}


REAL = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "iu_xray_reports" / "reports.jsonl"


def test_real_reports_pass_every_rule():
    if not REAL.exists():
        pytest.skip("the Open-i reports are not beside the repository")
    count, units = 0, dict.fromkeys(METHOD_TEXTS, 0)
    for number, line in enumerate(REAL.read_text(encoding="utf-8").splitlines()):
        report = json.loads(line)
        text = "".join(f"{key.upper()}: {report[key]}\n" for key in ("indication", "findings", "impression"))
        for mode in sections.MODES:
            assert sections.count_rules(sections.parse_sections(text, mode))
        assert not re.search(r"(?<!\w)XXXX(?!\w)", clean(text, deid="drop"))
        count += 1
        if number % 8 == 0:
            for method in METHOD_TEXTS:
                units[method] += bool(units_of(report["findings"], report["impression"], method))
    assert count == 3955
    less = {"gloria": 489, "medclip": 485, "medclip_old": 481, "chexzero": 495}
    assert units == dict.fromkeys(METHOD_TEXTS, 491) | less
