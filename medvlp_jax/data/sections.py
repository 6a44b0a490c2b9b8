"""Radiology reports -> named sections -> findings and impression.

Three readings of a report:

* `mimic`: MIMIC-CXR text files, whose lines start with one space; every header that starts a line is found.
* `loose`: other sources. Leading spaces are optional, known headers may be in mixed case, and FINDINGS or IMPRESSION in
  capitals may follow a sentence on the same line.
* `mimic_official`: the published MIMIC-CXR sections, oddities included (see `Quirks`), for comparison with other work.

Rules restated from MIT-LCP/mimic-cxr `txt/section_parser.py` and `txt/create_section_files.py` (MIT licence). Its
hand-made lists for 54 studies are not part of this parser. Nothing here logs text.
"""

from __future__ import annotations

import bisect
import collections
import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

MODES = ("mimic", "loose", "mimic_official")
POLICIES: dict[str, str] = {
    "mask": "a missing section is '' and its flag False: its loss terms are masked",
    "space": "a missing section becomes one blank and counts as present (MGCA's table)",
    "placeholder": "a missing section becomes the placeholder text and counts as present",
    "drop_if_both_missing": "as mask; rows with both flags False are left out by the builder (MGCA, LoVT)",
    "fallback_impression": "one text in both fields: impression, then findings when there are any (M-FLAG, G2D)",
    "longest": "one text in both fields: the longer of the two sections (CXR-CLIP)",
    "last_paragraph": "as mask; the last paragraph stands in for findings when both are missing",
}
"""What becomes of a missing section, by policy name."""

_GROUPS: dict[str, tuple[str, ...]] = {
    "impression": (
        "conclusion",
        *("impresson", "imprression", "imoression", "impressoin", "imprssion", "impresion"),
        *("imperssion", "mpression", "impession"),
    ),
    "findings": (
        "finding",
        *("findins", "findindgs", "findgings", "findngs", "findnings", "finidngs"),
        "chest, two views",
        "reference findings",
    ),
    "comparison": (
        *("comparisons", "reference exam", "comparison film", "comparison exam"),
        *("comparision", "comparsion", "comparrison", "comparisions"),
    ),
    "indication": ("reason for exam", "reason for examination", "clinical indication", "idication"),
    "history": ("clinical history", "clinical information", "patient history", "pfi"),
    "examination": ("exam", "type of examination"),
    "recommendations": ("recommendation", "recommendation(s)", "recommendations"),
    "wet read": ("wetread",),
}
CANONICAL: tuple[str, ...] = (
    *("impression", "findings", "comparison", "indication", "history", "examination", "recommendations", "wet read"),
    *("preamble", "technique", "notification", "addendum", "date", "comment"),
)
HEADERS: dict[str, str] = {name: name for name in CANONICAL} | {
    spelling: name for name, spellings in _GROUPS.items() for spelling in spellings
}
"""Lower-cased header -> section name."""

COMBINED = "findings and impression"
_COMBINED = {"findings and impression", "findings/impression", "findings/ impression", "findings with impression"}
_KNOWN = {*HEADERS, *_COMBINED, "ndication"}
_BODY = ("impression", "findings", COMBINED)
_SUBSTRINGS = ("impression", "findings", "history", "comparison", "addendum")
_VIEW_WORDS = (
    *("chest", "portable", "pa and lateral", "lateral and pa", "ap and lateral", "lateral and ap", "frontal and"),
    *("two views", "one view", "frontal view", "pa view", "ap view", "lateral view", "bone window", "frontal upright"),
    *("frontal semi-upright", "ribs", "pa and lat"),
)

_OFFICIAL = re.compile(r"\n ([A-Z ()/,-]+):\s")
_MIMIC = re.compile(r"(?<=\n) ([A-Z ()/,-]*[A-Z][A-Z ()/,-]*):(?=\s|$)")
_LOOSE = re.compile(r"^[ \t]*([A-Za-z][A-Za-z0-9 ()/,&.'-]{0,60}?)[ \t]*:", re.MULTILINE)
_INLINE = re.compile(r"(?<=[ \t])(FINDINGS? AND IMPRESSION|FINDINGS?|IMPRESSION|CONCLUSION)[ \t]*:")
_RULER = re.compile(r"^[ \t]*_{10,}[ \t]*$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Quirks:
    """Oddities of the published MIMIC-CXR sections; all off by default, all on in mode `mimic_official`."""

    ndication_is_impression: bool = False
    """The header NDICATION, a misspelt INDICATION, counts as impression."""
    combined_is_impression: bool = False
    """FINDINGS AND IMPRESSION is impression alone; otherwise its text serves as both."""
    last_paragraph_from_first_break: bool = False
    """`last_paragraph` is everything after the first blank line of the last section, not its last paragraph."""
    hidden_headers: bool = False
    """A header alone on its line hides a header on the next line."""
    no_addendum_rule: bool = False
    """A line of underscores does not start an addendum."""


OFFICIAL_QUIRKS = Quirks(*(True for _ in dataclasses.fields(Quirks)))


@dataclasses.dataclass(frozen=True)
class Section:
    """A piece of a report. `text` is report[start:end] with line ends as LF; spans do not overlap.

    rule: how it was named: preamble, full report, table, substring, view_word, other, last_paragraph or addendum.
    in_addendum: it follows a line of underscores.
    """

    name: str
    text: str
    start: int
    end: int
    rule: str
    in_addendum: bool = False


def section_name(header: str, quirks: Quirks = Quirks()) -> tuple[str, str]:
    """Header text -> (section name, rule that named it)."""
    name = " ".join(header.lower().split())
    if name in _COMBINED:
        return ("impression", "table") if quirks.combined_is_impression else (COMBINED, "table")
    if name == "ndication":
        return ("impression" if quirks.ndication_is_impression else "indication"), "table"
    if name in HEADERS:
        return HEADERS[name], "table"
    for word in _SUBSTRINGS:
        if word in name:
            return word, "substring"
    if any(word in name for word in _VIEW_WORDS):
        return "findings", "view_word"
    return name, "other"


def parse_sections(text: str, mode: str = "mimic", quirks: Quirks | None = None) -> list[Section]:
    """Sections of a report in order.

    Text before the first header is `preamble`; a report without a header is one section `full report`. Empty
    findings and impression sections are dropped. When neither remains and the last section has a blank line, its
    last paragraph becomes the section `last_paragraph`. LF, CRLF and CR line ends give the same sections.

    Args: text: the whole report, leading spaces included. mode: one of `MODES`. quirks: default none, or all in
      `mimic_official`.
    Raises: ValueError for another mode.
    """
    if mode not in MODES:
        raise ValueError(f"Unknown section mode {mode!r}. Modes: {', '.join(MODES)}.")
    if quirks is None:
        quirks = OFFICIAL_QUIRKS if mode == "mimic_official" else Quirks()
    lines, offsets = _with_lf(text)
    rulers = [] if quirks.no_addendum_rule else [match.span() for match in _RULER.finditer(lines)]
    cuts = sorted([*_headers(lines, mode, quirks), *((start, end, None) for start, end in rulers)])
    official = mode == "mimic_official"
    pieces: list[tuple[str, str, int, int]] = []
    if not cuts:
        pieces.append(("full report", "full report", 0, len(lines)))
    elif official or lines[: cuts[0][0]].strip():
        # The published rule leaves the newline and the blank before the first header with the preamble.
        pieces.append(("preamble", "preamble", 0, cuts[0][0] + 2 if official else cuts[0][0]))
    for index, (_, start, header) in enumerate(cuts):
        end = cuts[index + 1][0] if index + 1 < len(cuts) else len(lines)
        name, rule = ("addendum", "addendum") if header is None else section_name(header, quirks)
        pieces.append((name, rule, start, end))
    pieces = [piece for piece in pieces if not _is_empty(lines, piece)]
    if pieces and not any(piece[0] in _BODY for piece in pieces):
        pieces[-1:] = _split_last_paragraph(lines, pieces[-1], quirks)
    first_ruler = rulers[0][0] if rulers else len(lines) + 1
    return [
        Section(name, lines[start:end], offsets(start), offsets(end), rule, in_addendum=start > first_ruler)
        for name, rule, start, end in pieces
    ]


def _with_lf(text: str) -> tuple[str, Any]:
    """Text with LF line ends, and a function from its positions to positions of the original."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    if len(lines) == len(text):
        return lines, lambda position: position
    # Position in `lines` of the LF that was a CRLF; every one of them before a position adds one to it.
    shifted = [match.start() - number for number, match in enumerate(re.finditer("\r\n", text))]
    return lines, lambda position: position + bisect.bisect_left(shifted, position)


def _is_empty(lines: str, piece: tuple[str, str, int, int]) -> bool:
    """True for findings and impression without text, and for a line of underscores with nothing but a header after
    it."""
    name, rule, start, end = piece
    return (name in _BODY or rule == "addendum") and not lines[start:end].strip()


def _headers(lines: str, mode: str, quirks: Quirks) -> list[tuple[int, int, str]]:
    """(start of the header, start of its text, header)."""
    found = []
    if mode == "loose":
        for match in _LOOSE.finditer(lines):
            header = match.group(1)
            if header.isupper() or " ".join(header.lower().split()) in _KNOWN:
                found.append((match.start(), match.end(), header))
        for match in _INLINE.finditer(lines):
            if not any(start <= match.start() < end for start, end, _ in found):
                found.append((match.start(), match.end(), match.group(1)))
    elif quirks.hidden_headers:
        match = _OFFICIAL.search(lines)
        while match:
            found.append((match.start(), match.end(), match.group(1)))
            # Goes on at the first newline after the match, which may have eaten the newline of its own line.
            newline = lines.find("\n", match.end())
            match = _OFFICIAL.search(lines, match.end() if newline == -1 else newline)
    else:
        # The newline and the space before a header belong to no section.
        found = [(match.start() - 1, match.end(), match.group(1)) for match in _MIMIC.finditer(lines)]
    return found


def _split_last_paragraph(
    lines: str, piece: tuple[str, str, int, int], quirks: Quirks
) -> list[tuple[str, str, int, int]]:
    name, rule, start, end = piece
    if quirks.last_paragraph_from_first_break:
        position = lines.find("\n \n", start, end)
        breaks = [(position, position + 3)] if position != -1 else []
    else:
        stop = start + len(lines[start:end].rstrip())
        breaks = [(start + m.start(), start + m.end()) for m in re.finditer(r"\n[ \t]*\n\s*", lines[start:stop])][-1:]
    if not breaks:
        return [piece]
    left, right = breaks[0]
    return [(name, rule, start, left), ("last_paragraph", "last_paragraph", right, end)]


def is_missing(text: Any) -> bool:
    """True for None, NaN, blanks, and the cell texts "nan", "none", "null" and "n/a" in any case."""
    if text is None or (isinstance(text, float) and math.isnan(text)):
        return True
    return str(text).strip().lower() in {"", "nan", "none", "null", "n/a", "<na>"}


def apply_policy(
    findings: Any,
    impression: Any,
    policy: str = "mask",
    *,
    placeholder: str = "none reported",
    last_paragraph: str = "",
) -> dict[str, Any]:
    """What a missing section becomes; see `POLICIES`. There is no silent default elsewhere: the policy is a config
    field.

    Args: findings, impression: text, or None, NaN, "" and the like for missing (`is_missing`). policy: one of
      `POLICIES`. placeholder, last_paragraph: used by the policies of these names.
    Returns: {"findings": str, "impression": str, "has_findings": bool, "has_impression": bool}.
    Raises: ValueError for another policy.
    """
    if policy not in POLICIES:
        raise ValueError(f"Unknown policy {policy!r} for missing sections. Policies: {', '.join(POLICIES)}.")
    findings = "" if is_missing(findings) else str(findings).strip()
    impression = "" if is_missing(impression) else str(impression).strip()
    if policy in ("space", "placeholder"):
        filler = " " if policy == "space" else placeholder
        return {
            "findings": findings or filler,
            "impression": impression or filler,
            "has_findings": True,
            "has_impression": True,
        }
    if policy == "fallback_impression":
        findings = impression = " ".join(filter(None, (impression, findings)))
    elif policy == "longest":
        findings = impression = max(findings, impression, key=len)
    elif policy == "last_paragraph" and not findings and not impression:
        findings = "" if is_missing(last_paragraph) else last_paragraph.strip()
    return {
        "findings": findings,
        "impression": impression,
        "has_findings": bool(findings),
        "has_impression": bool(impression),
    }


REPORT_PARTS = ("findings", "impression", "report")


def study_texts(record: Mapping[str, Any], policy: str = "mask", report: Sequence[str] = ()) -> dict[str, Any]:
    """The texts of a record that a model may be aligned with, and which of them are there.

    Args: record: with `findings` and `impression`, and `report` when that is a part. policy: as `apply_policy`.
      report: what the unit `report` is made of, in this order, joined by a blank: parts that are missing are left out,
      a report without any part is missing as a section would be. `report` among them is the text as it was written,
      headers included. () for no such unit.
    Returns: as `apply_policy`; with `report` also {"report": str, "has_report": bool}.
    Raises: ValueError for another policy or part.
    """
    unknown = [part for part in report if part not in REPORT_PARTS]
    if unknown:
        raise ValueError(f"Unknown part {unknown[0]!r} of a report. Choose of {', '.join(REPORT_PARTS)}.")
    texts = apply_policy(record["findings"], record["impression"], policy)
    if report:
        parts = (record[part] for part in report)
        joined = " ".join(str(part).strip() for part in parts if not is_missing(part))
        whole = apply_policy(joined, joined, policy)
        texts |= {"report": whole["findings"], "has_report": whole["has_findings"]}
    return texts


def choose(sections: Iterable[Section], policy: str = "mask") -> dict[str, Any]:
    """Findings and impression of a parsed report, with `apply_policy` for what is missing.

    When a name repeats, the last one wins, but a section in an addendum never replaces one of the report itself. The
    text of FINDINGS AND IMPRESSION serves as each of the two that has no section of its own.
    """
    best: dict[str, str] = {}
    for section in sorted(sections, key=lambda section: not section.in_addendum):  # stable: addenda first
        if section.text.strip():
            best[section.name] = section.text.strip()
    return apply_policy(
        best.get("findings", best.get(COMBINED, "")),
        best.get("impression", best.get(COMBINED, "")),
        policy,
        last_paragraph=best.get("last_paragraph", ""),
    )


def single_text(sections: Iterable[Section]) -> tuple[str, str]:
    """(name, text) of the one section that the published single-text file keeps; ("", "") when there is none.

    Impression, else findings, last_paragraph or comparison. A comparison does not describe the image: count it as
    missing.
    """
    last = {section.name: section.text.strip() for section in sections}
    for name in ("impression", COMBINED, "findings", "last_paragraph", "comparison"):
        if name in last:
            return name, last[name]
    return "", ""


def count_rules(sections: Iterable[Section]) -> dict[str, int]:
    """How the sections of one report were found, for the counts a builder prints: one number per rule."""
    sections = list(sections)
    counts = collections.Counter(f"header by {section.rule}" for section in sections)
    names = {section.name for section in sections if section.text.strip()}
    main = {section.name for section in sections if section.text.strip() and not section.in_addendum}
    found = {"findings", "impression", COMBINED} & names
    counts["both sections missing"] += not found
    counts["findings missing"] += not found & {"findings", COMBINED}
    counts["impression missing"] += not found & {"impression", COMBINED}
    counts["empty report"] += not names
    counts["section repeated in an addendum"] += any(s.in_addendum and s.name in main for s in sections)
    return {rule: count for rule, count in sorted(counts.items()) if count}


def chexzero_impression(text: str, *, released: bool = True) -> str:
    """The impression as CheXzero takes it: the words after the last IMPRESSION:, up to RECOMMENDATION(S) or
    NOTIFICATION.

    released: look for the end words in the whole report, so that one before the impression leaves nothing; False
    looks after the impression. Without an impression the text is "NO IMPRESSION". Source: rajpurkarlab/CheXzero
    `preprocess_train_data`.
    """
    words = text.split()
    if "IMPRESSION:" not in words:
        return "NO IMPRESSION"
    begin = len(words) - words[::-1].index("IMPRESSION:")
    ends = len(words)
    for position in range(0 if released else begin, len(words)):
        if re.match(r"(RECOMMENDATION|RECOMMENDATIONS|RECOMMENDATION\(S\)|NOTIFICATIONS?):?$", words[position]):
            ends = position
            break
    return " ".join(words[begin:ends])
