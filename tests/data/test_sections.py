"""Report sections: the published rules, the project's own, and what becomes of missing sections. All texts are
invented."""

import json
import math
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvlp_jax.data import sections as sec


def named(text, mode):
    return {section.name: section.text.strip() for section in sec.parse_sections(text, mode)}


def names(text, mode):
    return [section.name for section in sec.parse_sections(text, mode) if section.text.strip()]


OFFICIAL_CASES = {
    "no newline before the first header": (
        " FINDINGS: The lungs are clear.\n IMPRESSION: No acute disease.",
        {"preamble": "FINDINGS: The lungs are clear.", "impression": "No acute disease."},
    ),
    "plain": (
        "\n FINDINGS:\n Lungs clear.\n \n IMPRESSION:\n Normal chest.",
        {"findings": "Lungs clear.", "impression": "Normal chest."},
    ),
    "stripped": ("FINDINGS: clear", {"full report": "FINDINGS: clear"}),
    "combined": ("\n FINDINGS AND IMPRESSION:\n Small left effusion.", {"impression": "Small left effusion."}),
    "misspelt": ("\n IMPRESSON:\n Stable.", {"impression": "Stable."}),
    "ndication": ("\n NDICATION:\n cough", {"impression": "cough"}),
    "view table": ("\n CHEST, TWO VIEWS:\n Heart is normal.", {"findings": "Heart is normal."}),
    "view word": (
        "\n PORTABLE SEMI-UPRIGHT RADIOGRAPH OF THE CHEST:\n Tubes unchanged.",
        {"findings": "Tubes unchanged."},
    ),
    "hidden header": (
        "\n IMPRESSION: First.\n ADDENDUM:\n IMPRESSION: Second.",
        {"impression": "First.", "addendum": "IMPRESSION: Second."},
    ),
    "last wins": (
        "\n IMPRESSION: First.\n ADDENDUM: x\n IMPRESSION: Second.",
        {"impression": "Second.", "addendum": "x"},
    ),
    "two on one line": ("\n FINDINGS: IMPRESSION: both on one line.\n", {"findings": "IMPRESSION: both on one line."}),
    "last paragraph": (
        "\n HISTORY: fever\n \n Clear lungs.\n \n No effusion.",
        {"history": "fever", "last_paragraph": "Clear lungs.\n \n No effusion."},
    ),
    "comparison only": ("\n COMPARISON: none.\n", {"comparison": "none."}),
    "empty findings": ("\n FINDINGS:\n \n IMPRESSION: Small nodule.", {"impression": "Small nodule."}),
    "header hides header": ("\n FINDINGS:\n IMPRESSION: Small nodule.", {"findings": "IMPRESSION: Small nodule."}),
    "no header": ("lungs are clear today", {"full report": "lungs are clear today"}),
    "mixed case": ("Impression: normal.", {"full report": "Impression: normal."}),
}


@pytest.mark.parametrize("case", OFFICIAL_CASES)
def test_official(case):
    text, expected = OFFICIAL_CASES[case]
    assert {name: body for name, body in named(text, "mimic_official").items() if body} == expected


MIMIC_CASES = {
    "hidden header is found": (
        "\n IMPRESSION: First.\n ADDENDUM:\n IMPRESSION: Second.",
        {"impression": "Second."},
    ),
    "empty findings": ("\n FINDINGS:\n IMPRESSION: Small nodule.", {"impression": "Small nodule."}),
    "ndication": ("\n NDICATION:\n cough", {"indication": "cough"}),
    "combined": ("\n FINDINGS AND IMPRESSION:\n Small effusion.", {"findings and impression": "Small effusion."}),
    "last paragraph": ("\n HISTORY: fever\n \n Clear.\n \n No effusion.", {"last_paragraph": "No effusion."}),
    "header at the end": ("\n FINDINGS: clear\n IMPRESSION:", {"findings": "clear"}),
    "needs the newline": (" FINDINGS: Clear.\n IMPRESSION: None.", {"impression": "None."}),
    "mixed case is text": ("\n Impression: normal.", {"full report": "Impression: normal."}),
}


@pytest.mark.parametrize("case", MIMIC_CASES)
def test_mimic(case):
    text, expected = MIMIC_CASES[case]
    found = named(text, "mimic")
    assert {name: found[name] for name in expected} == expected
    if "empty" in case or "at the end" in case:
        assert len(found) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" FINDINGS: Clear.\n IMPRESSION: None.", {"findings": "Clear.", "impression": "None."}),
        ("Impression: normal.", {"impression": "normal."}),
        ("impression : normal.", {"impression": "normal."}),
        ("Findings:Clear\nConclusion:Normal", {"findings": "Clear", "impression": "Normal"}),
        ("FINDINGS: Lungs clear. IMPRESSION: Normal.", {"findings": "Lungs clear.", "impression": "Normal."}),
        ("CHEST 2 VIEWS: Clear.", {"findings": "Clear."}),
        ("Heart: normal. Lungs: clear.", {"full report": "Heart: normal. Lungs: clear."}),
        ("There are two findings: none is new.", {"full report": "There are two findings: none is new."}),
        ("See FINDINGS AND IMPRESSION: Clear.", {"preamble": "See", "findings and impression": "Clear."}),
    ],
)
def test_loose(text, expected):
    assert named(text, "loose") == expected


def test_combined_section_serves_as_both():
    chosen = sec.choose(sec.parse_sections("\n FINDINGS AND IMPRESSION:\n Small effusion.", "mimic"))
    assert chosen["findings"] == chosen["impression"] == "Small effusion."
    own = sec.choose(sec.parse_sections("\n FINDINGS AND IMPRESSION:\n Both.\n IMPRESSION: Own.", "mimic"))
    assert (own["findings"], own["impression"]) == ("Both.", "Own.")


def test_addendum_after_a_line_of_underscores_never_overrides():
    text = f"\n IMPRESSION: First.\n {'_' * 30}\n Late remark.\n IMPRESSION: Second."
    parsed = sec.parse_sections(text, "mimic")
    assert [s.name for s in parsed] == ["impression", "addendum", "impression"]
    assert [s.in_addendum for s in parsed] == [False, True, True]
    assert sec.choose(parsed)["impression"] == "First."
    assert sec.count_rules(parsed)["section repeated in an addendum"] == 1
    assert "_" not in "".join(s.text for s in parsed)


def test_sections_below_a_line_of_underscores_are_used_when_there_are_no_others():
    parsed = sec.parse_sections(f"\n Chest film\n {'_' * 30}\n FINDINGS: Clear.", "mimic")
    assert sec.choose(parsed)["findings"] == "Clear."
    assert "addendum" not in [s.name for s in parsed]


def test_deidentified_words_are_no_addendum():
    assert names("\n FINDINGS: seen by\n ___\n Clear.", "mimic") == ["findings"]


@pytest.mark.parametrize("text", ["", "   ", "\n \n"])
@pytest.mark.parametrize("mode", sec.MODES)
def test_nothing_is_counted_not_crashed(text, mode):
    parsed = sec.parse_sections(text, mode)
    assert not sec.choose(parsed)["has_findings"]
    assert sec.count_rules(parsed)["empty report"] == 1


def test_comparison_alone_is_missing():
    parsed = sec.parse_sections("\n COMPARISON: none.\n", "mimic_official")
    assert sec.single_text(parsed) == ("comparison", "none.")
    chosen = sec.choose(parsed)
    assert not chosen["has_findings"]
    assert not chosen["has_impression"]
    assert sec.count_rules(parsed)["both sections missing"] == 1
    assert sec.single_text([]) == ("", "")


def test_rules_are_counted():
    text = "\n EXAM: film\n CHEST:\n Clear.\n OVERALL IMPRESSION: Fine.\n ODD: x"
    counts = sec.count_rules(sec.parse_sections(text, "mimic"))
    assert counts == {
        "header by table": 1,
        "header by view_word": 1,
        "header by substring": 1,
        "header by other": 1,
    }


def test_each_quirk_can_be_switched_alone():
    text = "\n NDICATION: cough\n FINDINGS:\n IMPRESSION: Small nodule."
    only_hidden = sec.parse_sections(text, "mimic", sec.Quirks(hidden_headers=True))
    assert [s.name for s in only_hidden] == ["indication", "findings"]
    only_name = sec.parse_sections(text, "mimic", sec.Quirks(ndication_is_impression=True))
    assert [s.name for s in only_name] == ["impression", "impression"]


def test_unknown_mode_and_policy_list_the_known_ones():
    with pytest.raises(ValueError, match="mimic, loose, mimic_official"):
        sec.parse_sections("", "strict")
    with pytest.raises(ValueError, match="mask, space, placeholder"):
        sec.apply_policy("a", "b", "ignore")


REPORT = "\n FINDINGS:\n Lungs are clear.\n \n IMPRESSION: Normal.\n" + " " + "_" * 20 + "\n Late word.\n"


@pytest.mark.parametrize("mode", sec.MODES)
@pytest.mark.parametrize("end", ["\r\n", "\r"])
def test_line_ends_do_not_matter(mode, end):
    original = REPORT.replace("\n", end)
    plain, other = sec.parse_sections(REPORT, mode), sec.parse_sections(original, mode)
    assert [(s.name, s.text) for s in plain] == [(s.name, s.text) for s in other]
    for section in other:
        assert original[section.start : section.end].replace(end, "\n") == section.text


PIECES = st.sampled_from(
    [
        "\n",
        "\n ",
        " ",
        "\r\n",
        "FINDINGS",
        "IMPRESSION",
        "HISTORY",
        ":",
        "Impression:",
        "clear.",
        "_" * 12,
        "é",
        "(",
        "\t",
    ]
)


@pytest.mark.parametrize("mode", sec.MODES)
@settings(derandomize=True, deadline=None)
@given(text=st.one_of(st.text(), st.lists(PIECES).map("".join)))
def test_any_text_parses_into_spans_that_do_not_overlap(mode, text):
    parsed = sec.parse_sections(text, mode)
    assert parsed == sec.parse_sections(text, mode)
    end = 0
    for section in parsed:
        assert end <= section.start <= section.end <= len(text)
        assert text[section.start : section.end].replace("\r\n", "\n").replace("\r", "\n") == section.text
        end = section.end
    chosen = sec.choose(parsed)
    assert chosen["has_findings"] == bool(chosen["findings"])


@settings(derandomize=True, deadline=None)
@given(text=st.lists(PIECES).map("".join).filter(lambda text: "\r" not in text))
def test_crlf_gives_the_same_sections(text):
    for mode in sec.MODES:
        plain = sec.parse_sections(text, mode)
        other = sec.parse_sections(text.replace("\n", "\r\n"), mode)
        assert [(s.name, s.text, s.rule) for s in plain] == [(s.name, s.text, s.rule) for s in other]


@settings(derandomize=True, deadline=None)
@given(data=st.binary())
def test_bytes_of_any_kind(data):
    for mode in sec.MODES:
        sec.parse_sections(data.decode("utf-8", "replace"), mode)


@pytest.mark.parametrize("value", [None, math.nan, "", " ", "nan", "NaN", "None"])
def test_missing_cells(value):
    masked = sec.apply_policy(value, "Normal.", "mask")
    assert masked == {"findings": "", "impression": "Normal.", "has_findings": False, "has_impression": True}


def test_a_word_of_the_old_preparation_is_only_text():
    assert sec.apply_policy("dumb", None)["has_findings"]


@pytest.mark.parametrize(
    ("policy", "findings", "impression", "expected"),
    [
        ("space", "", "", (" ", " ", True, True)),
        ("space", "F", None, ("F", " ", True, True)),
        ("placeholder", "", "I", ("none reported", "I", True, True)),
        ("drop_if_both_missing", "", "", ("", "", False, False)),
        ("drop_if_both_missing", "F", "", ("F", "", True, False)),
        ("fallback_impression", "F", "I", ("I F", "I F", True, True)),
        ("fallback_impression", "", "I", ("I", "I", True, True)),
        ("fallback_impression", "F", "", ("F", "F", True, True)),
        ("longest", "Longer text", "I", ("Longer text", "Longer text", True, True)),
        ("longest", "", "", ("", "", False, False)),
        ("last_paragraph", "", "", ("Tail.", "", True, False)),
        ("last_paragraph", "", "I", ("", "I", False, True)),
    ],
)
def test_policies(policy, findings, impression, expected):
    result = sec.apply_policy(findings, impression, policy, last_paragraph="Tail.")
    assert tuple(result.values()) == expected


def test_chexzero_rule():
    text = "\n RECOMMENDATION(S): CT.\n IMPRESSION: nodule. NOTIFICATION: called."
    assert sec.chexzero_impression(text) == ""
    assert sec.chexzero_impression(text, released=False) == "nodule."
    assert sec.chexzero_impression("FINDINGS: clear") == "NO IMPRESSION"
    assert sec.chexzero_impression("IMPRESSION: a IMPRESSION: b c") == "b c"


REAL = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "iu_xray_reports" / "reports.jsonl"


@pytest.mark.parametrize("mode", sec.MODES)
def test_real_reports_written_as_mimic_files_come_back_whole(mode):
    if not REAL.exists():
        pytest.skip("the Open-i reports are not beside the repository")

    def lines(text):
        return "".join("\n " + line for line in textwrap.wrap(text, 77, break_on_hyphens=False))

    checked, changed = 0, []
    for row in REAL.read_text(encoding="utf-8").splitlines():
        report = json.loads(row)
        findings, impression = (" ".join((report[key] or "").split()) for key in ("findings", "impression"))
        text = f"\n INDICATION: cough\n \n FINDINGS:{lines(findings)}\n \n IMPRESSION:{lines(impression)}\n"
        chosen = sec.choose(sec.parse_sections(text, mode))
        back = [" ".join(chosen[key].split()) for key in ("findings", "impression")]
        checked += bool(findings or impression)
        if back != [findings, impression]:
            changed.append(report["uid"])
    assert checked == 3927
    # The impression of the first holds a second report with headers; in the second, wrapping put words in capitals
    # and a colon at the start of a line.
    assert changed == ["CXR2415", "CXR3608"]
