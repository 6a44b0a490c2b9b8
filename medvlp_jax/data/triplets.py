"""(entity, position, exists) triplets of a report, for methods that learn from a graph instead of text (MedKLIP).

    triplets_of("Small left effusion. No pneumothorax.")
    # [Triplet('Pleural Effusion', 'left side', 1), Triplet('Pneumothorax', 'unspecified', 0)]

From graphs in the RadGraph format where there are any (`read_radgraph`; arXiv 2106.14463), else from the rules of
`label_rules` (`triplets_of`). Both name entities by CheXpert names where they are among them, and positions by
`POSITIONS` with a side, so that `exists_matrix` may mix the two sources.
"""

from __future__ import annotations

import collections
import functools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from medvlp_jax.data import label_rules_tables as tables
from medvlp_jax.data.label_rules import OTHER, Mention, mentions_of, sentences_of
from medvlp_jax.data.labels import ABSENT, PRESENT, UNCERTAIN

UNSPECIFIED, OTHER_POSITION = "unspecified", "other"
UNKNOWN = -1
"""In a matrix: nothing is said, or it is uncertain."""


class Triplet(NamedTuple):
    """What is said of an entity.

    entity: CheXpert name, or the words themselves. position: "left lower lobe", "pleura", UNSPECIFIED, ... exists: 1
    present, 0 absent, -1 uncertain.
    """

    entity: str
    position: str
    exists: int


# Region -> words for it. The first region that a text names wins over later ones at the same place.
POSITIONS: dict[str, str] = {
    "upper lobe": r"upper lobes?",
    "middle lobe": r"(?:middle|mid) lobes?",
    "lower lobe": r"lower lobes?",
    "lingula": r"lingula\w*",
    "apex": r"apex|(?:bi)?-?apical|apices",
    "base": r"bases?|basal|(?:bi)?-?basilar",
    "upper lung": r"upper (?:lungs?|zones?)",
    "mid lung": r"mid(?:dle)?-? ?(?:lungs?|zones?)",
    "lower lung": r"lower (?:lungs?|zones?)",
    "hilum": r"(?:peri|supra|infra|juxta)?hil(?:um|ar|a|i)",
    "costophrenic angle": r"(?:costo|cardio)phrenic(?: angles?| sulc\w+)?|cp angles?",
    "retrocardiac": r"retrocardiac(?: area| region)?",
    "diaphragm": r"(?:hemi)?diaphragm\w*",
    "fissure": r"fissur\w+",
    "superior vena cava": r"svc|superior vena cava|cavo-?atrial junction",
    "right atrium": r"right atri(?:um|al)",
    "trachea": r"trachea\w*|carina",
    "stomach": r"stomach|gastric",
    "aorta": r"aort\w+",
    "rib": r"ribs?",
    "clavicle": r"clavic\w+",
    "spine": r"spin(?:e|al)|vertebr\w+",
    "shoulder": r"shoulders?|humer\w+|scapul\w+",
    "chest wall": r"chest wall",
    "heart": r"heart|cardiac|cardiomegaly",
    "mediastinum": r"(?:cardio)?mediastin\w+|paratracheal",
    "interstitium": r"interstiti\w+",
    "pleura": r"pleura\w*",
    "lung": r"lungs?|pulmonary|parenchym\w+",
}
_GENERIC = ("pleura", "lung", "interstitium")  # said beside a place rather than instead of one
_MIDLINE = {
    "retrocardiac",
    "superior vena cava",
    "right atrium",
    "trachea",
    "stomach",
    "aorta",
    "spine",
    "heart",
    "mediastinum",
}
_SIDES = {"left": "left", "right": "right", "bilateral": "bilateral", "bilaterally": "bilateral", "both": "bilateral"}
_SIDE_ALONE = {"left": "left side", "right": "right side", "bilateral": "both sides"}
_SIDE = re.compile(rf"(?<![\w-])(?:{'|'.join(_SIDES)})(?!\w)")
_REGION = re.compile("|".join(rf"(?P<r{i}>(?<![\w])(?:{words})(?!\w))" for i, words in enumerate(POSITIONS.values())))
_AND_ALSO = re.compile(r" and (?:left|right)(?: \w+){1,3}")  # "in the left base and right upper lobe"
_REGIONS = tuple(POSITIONS)


def positions_in(text: str) -> list[str]:
    """Canonical positions named in lower-case words, in order: ["left base"], ["pleura"], ["left side"], []."""
    sides = [(match.start(), _SIDES[match.group()]) for match in _SIDE.finditer(text)]
    found: list[tuple[str, str]] = []
    for match in _REGION.finditer(text):
        region = _REGIONS[int(match.lastgroup[1:])]
        before = [side for start, side in sides if start < match.start()]
        side = "bilateral" if match.group().startswith("bi") else (before[-1] if before else "")
        if not side and sides:
            side = sides[0][1]
        if not side and match.group() in ("bases", "apices"):
            side = "bilateral"
        if region in _MIDLINE:
            side = ""
        found.append((side, region))
    if any(region not in _GENERIC for _, region in found):
        found = [(side, region) for side, region in found if region not in _GENERIC]
    named = [f"{side} {region}".strip() for side, region in found]
    return list(dict.fromkeys(named)) or ([_SIDE_ALONE[sides[0][1]]] if sides else [])


def triplets_of(text: str) -> list[Triplet]:
    """Triplets of findings and impression by rules, without repetition, in order of the text.

    A position is looked for in the mention and in the words around it, as far as the clause, the next comma or the
    next mention goes, and beyond that mention when there is none so near. Findings outside the fourteen give none.
    """
    sentences = sentences_of(text)
    mentions = mentions_of(text)
    found: dict[Triplet, None] = {}
    for mention in mentions:
        if mention.name == OTHER:
            continue
        sentence = sentences[mention.sentence]
        named = positions_in(_around(sentence, mention, mentions))
        if not named and mention.state != ABSENT:  # "consolidation and atelectasis in the left base"
            named = positions_in(_around(sentence, mention, ()))
        for position in named or [UNSPECIFIED]:
            found[Triplet(mention.name, position, mention.state)] = None
    return list(found)


def _around(sentence: str, mention: Mention, mentions: Sequence[Mention]) -> str:
    others = [other for other in mentions if other.sentence == mention.sentence and other.name != mention.name]
    left = max((other.end for other in others if other.end <= mention.start), default=0)
    right = min((other.start for other in others if other.start >= mention.end), default=len(sentence))
    last = right == len(sentence)
    left, right = max(left, mention.clause[0]), min(right, mention.clause[1])
    if last and (more := _AND_ALSO.match(sentence, right)):
        right = more.end()
    border = r",|\bor\b" if mention.state == ABSENT else r","
    before = re.split(border, sentence[left : mention.start])[-1]
    after = re.split(border, sentence[mention.end : max(right, mention.end)])[0]
    return before + sentence[mention.start : mention.end] + after


_STATUS = {PRESENT: "Definitely Present", ABSENT: "Definitely Absent", UNCERTAIN: "Uncertain"}


def entity_text(text: str) -> str:
    """A report as a string of entities with their status, which KAD's text encoder reads instead of sentences.

    "[ENT] effusion Observation Definitely Present" for each mention, sentences joined by " [SEP] "; without any
    mention the sentences themselves. Entities come from the label rules; KAD takes them from UMLS and RadGraph. Source:
    xiaoman-zhang/KAD, whose released text lacks the blank before the status.
    """
    sentences = sentences_of(text)
    parts: dict[int, str] = {}
    for mention in mentions_of(text):
        if mention.name != OTHER:
            words = sentences[mention.sentence][mention.start : mention.end]
            entity = f" [ENT] {words} Observation {_STATUS[mention.state]}"
            parts[mention.sentence] = parts.get(mention.sentence, "") + entity
    return " [SEP] ".join(part.strip() for part in parts.values()) if parts else " [SEP] ".join(sentences)


# ---- RadGraph -----------------------------------------------------------

_STATES = {
    "dp": PRESENT,
    "da": ABSENT,
    "u": UNCERTAIN,
    "definitely present": PRESENT,
    "definitely absent": ABSENT,
    "uncertain": UNCERTAIN,
    "measurement": PRESENT,
}


def read_radgraph(path: str | os.PathLike[str]) -> Iterator[tuple[str, list[Triplet]]]:
    """(key of the report, its triplets) for every report of a file in the RadGraph format.

    The file is one JSON object {key: {"entities": {id: {"tokens", "label", "start_ix", "relations"}}}}; labels are
    "OBS-DP", "OBS-DA", "OBS-U", "ANAT-DP" or "Observation::definitely present" and the like. Keys are paths such as
    "p10/p10000032/s50414267.txt" in the MIMIC-CXR graphs.

    Raises: FileNotFoundError; ValueError naming the number of the report in the file, never its key or text.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"No RadGraph file at {path}.")
    try:
        reports = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path.name} is not JSON: {type(error).__name__} at position {getattr(error, 'pos', '?')}."
        ) from None
    if not isinstance(reports, dict):
        raise ValueError(f"{path.name} holds a {type(reports).__name__}, not an object of reports by key.")
    for number, (key, report) in enumerate(reports.items(), 1):
        if not isinstance(report, dict) or not isinstance(report.get("entities"), dict):
            raise ValueError(f"Report {number} of {path.name} has no object 'entities'.")
        try:
            triplets = graph_triplets(report["entities"])
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ValueError(
                f"Report {number} of {path.name} has an entity that cannot be read ({type(error).__name__}: {error}). "
                "Each needs tokens, label, start_ix and relations."
            ) from None
        yield key, triplets


def graph_triplets(entities: Mapping[str, Mapping[str, Any]]) -> list[Triplet]:
    """Triplets of one RadGraph graph, without repetition, in order of the text.

    An observation that only modifies another one ("small") is no entity. It stands where its `located_at` relation
    leads: to an anatomy and to what modifies that.
    """
    kinds = {name: _kind(entity["label"]) for name, entity in entities.items()}
    order = sorted(entities, key=lambda name: int(entities[name]["start_ix"]))
    modifiers: dict[str, list[str]] = collections.defaultdict(list)
    for name in order:
        for relation, target in entities[name]["relations"]:
            if relation == "modify" and kinds[name][0] == "anatomy":
                modifiers[target].append(name)
    found: dict[Triplet, None] = {}
    for name in order:
        kind, state = kinds[name]
        relations = [(relation, target) for relation, target in entities[name]["relations"]]
        located = [target for relation, target in relations if relation == "located_at"]
        if kind != "observation" or (not located and any(relation == "modify" for relation, _ in relations)):
            continue
        entity = entity_name(str(entities[name]["tokens"]))
        places = [" ".join(_anatomy(target, entities, modifiers, order)) for target in located]
        for place in places or [""]:
            for position in positions_in(place) or [OTHER_POSITION if place else UNSPECIFIED]:
                found[Triplet(entity, position, state)] = None
    return list(found)


def _kind(label: str) -> tuple[str, int]:
    """ "OBS-DP" -> ("observation", 1). Raises: ValueError for another label."""
    kind, _, state = str(label).replace("::", "-").lower().partition("-")
    kind = {"obs": "observation", "anat": "anatomy"}.get(kind, kind)
    if kind not in ("observation", "anatomy") or state not in _STATES:
        raise ValueError(f"label {label!r} is none of OBS-DP, OBS-DA, OBS-U, ANAT-DP")
    return kind, _STATES[state]


def _anatomy(
    target: str, entities: Mapping[str, Mapping[str, Any]], modifiers: Mapping[str, list[str]], order: Sequence[str]
) -> list[str]:
    """Words of an anatomy with all that modifies it, in order of the text."""
    names, queue = set(), [target]
    while queue:
        name = queue.pop()
        if name not in names:
            names.add(name)
            queue.extend(modifiers.get(name, ()))
            queue.extend(t for relation, t in entities[name]["relations"] if relation == "modify")
    return [str(entities[name]["tokens"]).lower() for name in order if name in names]


@functools.lru_cache(maxsize=65536)
def entity_name(words: str) -> str:
    """CheXpert name of an observation's words, else the words in lower case: "Effusions" -> "Pleural Effusion"."""
    words = " ".join(words.lower().split())
    for name, patterns in tables.MENTIONS.items():
        if re.fullmatch("|".join(patterns), words):
            return name
    return words


def exists_matrix(
    triplets: Iterable[Triplet], entities: Sequence[str], positions: Sequence[str]
) -> tuple[np.ndarray, dict[str, int]]:
    """MedKLIP's matrix of one report.

    Args: entities, positions: names of the rows and columns wanted. A position that is not among them goes to "other"
      when that is.
    Returns: int8 (positions, entities): 1 present, 0 absent, -1 unknown; present wins over absent, uncertain leaves -1.
      And the number of triplets left out by reason.
    """
    rows = {name: i for i, name in enumerate(positions)}
    columns = {name: i for i, name in enumerate(entities)}
    exists_PxE = np.full((len(rows), len(columns)), UNKNOWN, np.int8)
    left_out: collections.Counter[str] = collections.Counter()
    for triplet in triplets:
        row, column = rows.get(triplet.position, rows.get(OTHER_POSITION)), columns.get(triplet.entity)
        if column is None or row is None:
            left_out["unknown entity" if column is None else "unknown position"] += 1
        elif triplet.exists == PRESENT:
            exists_PxE[row, column] = 1
        elif triplet.exists == ABSENT:
            exists_PxE[row, column] = max(exists_PxE[row, column], 0)
    return exists_PxE, dict(left_out)
