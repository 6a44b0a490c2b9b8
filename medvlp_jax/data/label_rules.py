"""The fourteen CheXpert observations from report text, by rules: what is named, denied or left open.

    labels_of("Small left effusion. No pneumothorax. Pneumonia cannot be excluded.")

The text is cut into sentences; in each, phrases of `label_rules_tables` name an observation, and words of
`label_rules_cues` around them in the same clause say whether it is present, absent or uncertain. One observation that
is named more than once is present before uncertain before absent, as in the CheXpert labeler (arXiv 1901.07031). Give
it findings and impression, not the indication: "rule out pneumonia" asks, it does not find.

Matching is by the standard library's `re`. Phrases with gaps and inflected forms need more than the fixed strings of a
dictionary matcher (pyahocorasick, flashtext); edit distance (rapidfuzz) confuses hypo- with hyper-; spaCy weighs more
than all of this; and the `regex` package was not faster on these patterns.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence

import numpy as np

from medvlp_jax.data import label_rules_cues as cues
from medvlp_jax.data import label_rules_tables as tables
from medvlp_jax.data.labels import ABSENT, CHEXPERT_LABELS, NOT_MENTIONED, PRESENT, UNCERTAIN, label_vector
from medvlp_jax.data.sections import choose, parse_sections
from medvlp_jax.data.sentences import split_sentences

OTHER = "Other Finding"
"""Name of mentions of findings outside the fourteen."""
WORDS_TO_PREDICATE = 9
_NO_SIZE = NOT_MENTIONED
_RANK = {PRESENT: 2, UNCERTAIN: 1, ABSENT: 0}


@dataclasses.dataclass(frozen=True)
class Mention:
    """An observation named in a sentence: `sentences_of(text)[sentence][start:end]`.

    name: one of `CHEXPERT_LABELS` without "No Finding", or `OTHER`. state: PRESENT, ABSENT or UNCERTAIN. clause: start
    and end of the part of the sentence that was searched for words that deny it or leave it open.
    """

    name: str
    state: int
    sentence: int
    start: int
    end: int
    clause: tuple[int, int]


def sentences_of(text: str) -> list[str]:
    """The sentences that the rules see: lower case, single blanks, a blank after every full stop between words."""
    spaced = re.sub(r"(?<=[a-z0-9])\.(?=[A-Z][a-z])", ". ", text)
    return [sentence.lower() for sentence in split_sentences(spaced, "simple")]


def mentions_of(text: str) -> list[Mention]:
    """Every mention of an observation, in order of the text."""
    found: list[Mention] = []
    for number, sentence in enumerate(sentences_of(text)):
        found.extend(_in_sentence(sentence, number))
    return found


def labels_of(text: str, *, other_findings: bool = True) -> np.ndarray:
    """Label vector of a report.

    Args: text: findings and impression. other_findings: findings outside the fourteen (scoliosis, granuloma, ...) stand
      against "No Finding", as they do in the CheXpert labeler.
    Returns: int8 (14,) in the order of `labels.CHEXPERT_LABELS`: 1 present, 0 absent, -1 uncertain, -2 not mentioned.
      "No Finding" is 1 when the text states something and nothing but support devices is present or uncertain, else
      -2.
    """
    mentions = mentions_of(text)
    states: dict[str, int] = {}
    abnormal = False
    for mention in mentions:
        if mention.name == OTHER:
            abnormal |= other_findings and mention.state != ABSENT
        elif mention.name not in states or _RANK[mention.state] > _RANK[states[mention.name]]:
            states[mention.name] = mention.state
    abnormal |= any(state != ABSENT for name, state in states.items() if name != "Support Devices")
    if not abnormal and (states or any(_pattern("normal").search(sentence) for sentence in sentences_of(text))):
        states["No Finding"] = PRESENT
    return label_vector(states)


def labels_of_sections(findings: str, impression: str, *, other_findings: bool = True) -> np.ndarray:
    """`labels_of` of two sections of a report; an empty one adds nothing."""
    return labels_of(f"{findings}\n\n{impression}", other_findings=other_findings)


def labels_of_report(report: str, mode: str = "loose", *, other_findings: bool = True) -> np.ndarray:
    """`labels_of` findings and impression of a whole report, or of its last paragraph when it has neither.

    Args: report: with its headers. mode: see `sections.MODES`. A report without headers is read as it is.
    """
    parsed = parse_sections(report, mode)
    chosen = choose(parsed, "last_paragraph")
    texts = [chosen["findings"], chosen["impression"]]
    if not any(texts) and len(parsed) == 1 and parsed[0].name == "full report":
        texts = [parsed[0].text]
    return labels_of("\n\n".join(texts), other_findings=other_findings)


def _in_sentence(sentence: str, number: int) -> list[Mention]:
    breaks = [match.start() for match in _pattern("breaks").finditer(sentence)]
    found = []
    for name in CHEXPERT_LABELS:
        if name not in tables.MENTIONS:
            continue
        blocked = [match.span() for match in _pattern("lookalikes", name).finditer(sentence)]
        for match in _pattern("mentions", name).finditer(sentence):
            start, end = match.span()
            if any(left <= start and end <= right for left, right in blocked):
                continue
            clause = _clause(breaks, start, len(sentence))
            state = _state(sentence[clause[0] : start], sentence[end : clause[1]])
            if state == PRESENT and ("blunt" in match.group() or "obscured" in match.group()):
                state = UNCERTAIN  # a blunted angle is compatible with an effusion, not proof of one
            found.append(Mention(name, state, number, start, end, clause))
    found.extend(_sizes(sentence, number, breaks, found))
    for match in _pattern("clear lungs").finditer(sentence):
        clause = _clause(breaks, match.start(), len(sentence))
        found.append(Mention("Lung Opacity", ABSENT, number, *match.span(), clause))
    for match in _pattern("other").finditer(sentence):
        start, end = match.span()
        clause = _clause(breaks, start, len(sentence))
        state = _state(sentence[clause[0] : start], sentence[end : clause[1]])
        found.append(Mention(OTHER, state, number, start, end, clause))
    return sorted(found, key=lambda mention: (mention.start, mention.end))


def _sizes(sentence: str, number: int, breaks: Sequence[int], mentions: Sequence[Mention]) -> list[Mention]:
    """What the sentence says about the size of the heart and of the mediastinum: the first word about size after the
    part, or else the last one before it."""
    found = []
    words = [
        (match.start(), match.end(), state)
        for state in (*tables.PREDICATES, _NO_SIZE)
        for match in _pattern("predicates", str(state)).finditer(sentence)
    ]
    # "not enlarged" holds "enlarged", "upper limits of normal" holds "normal": the longer one counts.
    words = [w for w in words if not any(v != w and v[0] <= w[0] and w[1] <= v[1] for v in words)]
    for name in tables.ANATOMY:
        for match in _pattern("anatomy", name).finditer(sentence):
            start, end = match.span()
            clause = _clause(breaks, start, len(sentence))
            if any(m.name == name and m.start <= start and end <= m.end for m in mentions):
                continue
            after = [w for w in words if end <= w[0] < clause[1]]
            before = [w for w in words if clause[0] <= w[0] and w[1] <= start]
            sized = [w for w in after if w[2] != _NO_SIZE]
            if sized and not _adjacent(before, start, sentence):
                word = min(sized)
            else:
                word = max(before, default=None) if not after or _adjacent(before, start, sentence) else None
            if word is None or word[2] == _NO_SIZE:
                continue
            left, right, state = word
            if state == PRESENT:
                state = _state(sentence[clause[0] : left], sentence[right : clause[1]])
            found.append(Mention(name, state, number, min(start, left), max(end, right), clause))
    return found


def _adjacent(before: Sequence[tuple[int, int, int]], start: int, sentence: str) -> bool:
    """True when a word about size stands right before the part ("enlarged heart")."""
    return any(not sentence[right:start].strip() for _, right, _ in before)


def _clause(breaks: Sequence[int], start: int, length: int) -> tuple[int, int]:
    left = max((b for b in breaks if b <= start), default=0)
    right = min((b for b in breaks if b > start), default=length)
    return left, right


def _state(before: str, after: str) -> int:
    """State of a mention from the rest of its clause."""
    if _soon("uncertain after", after) or _pattern("versus after").match(after):
        return UNCERTAIN
    strong = _last("strong uncertain", before)
    denied = _last("negation before", _pattern("not a negation").sub(lambda m: " " * len(m.group()), before))
    if denied > strong or _soon("negation after", after):
        return ABSENT
    if strong >= 0 or _pattern("uncertain before").search(before):
        return UNCERTAIN
    return PRESENT


def _soon(table: str, after: str) -> bool:
    """Is there a match within the next words? As many as a list has before its predicate."""
    match = _pattern(table).search(after)
    return match is not None and after.count(" ", 0, match.start()) <= WORDS_TO_PREDICATE


def _last(table: str, text: str) -> int:
    """Start of the last match, -1 without one."""
    return max((match.start() for match in _pattern(table).finditer(text)), default=-1)


@functools.cache
def _pattern(table: str, name: str = "") -> re.Pattern[str]:
    entries = {
        "mentions": lambda: tables.MENTIONS[name],
        "lookalikes": lambda: tables.LOOKALIKES.get(name, ()),
        "anatomy": lambda: tables.ANATOMY[name],
        "predicates": lambda: tables.NO_SIZE if int(name) == _NO_SIZE else tables.PREDICATES[int(name)],
        "clear lungs": lambda: tables.CLEAR_LUNGS,
        "other": lambda: tables.OTHER_FINDINGS,
        "normal": lambda: tables.NORMAL,
        "negation before": lambda: cues.NEGATION_BEFORE,
        "not a negation": lambda: cues.NOT_A_NEGATION,
        "uncertain before": lambda: cues.UNCERTAIN_BEFORE,
        "strong uncertain": lambda: cues.STRONG_UNCERTAIN_BEFORE,
        "negation after": lambda: cues.NEGATION_AFTER,
        "uncertain after": lambda: cues.UNCERTAIN_AFTER,
    }
    if table == "breaks":
        return re.compile("|".join(cues.BREAKS))
    if table == "versus after":
        return re.compile(cues.VERSUS_AFTER)
    alternatives = entries[table]() or (r"(?!)",)
    return re.compile(rf"(?<![\w-])(?:{'|'.join(alternatives)})(?!\w)")
