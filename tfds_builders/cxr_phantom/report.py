"""Reports in the style of MIMIC-CXR, written from what a study shows, with labels that agree with the words."""

import dataclasses
import textwrap

import numpy as np

from medvlp_jax.data.labels import ABSENT, CHEXPERT_LABELS, PRESENT, UNCERTAIN, label_vector
from tfds_builders.cxr_phantom import phrases
from tfds_builders.cxr_phantom.anatomy import MM_PER_UNIT, Body
from tfds_builders.cxr_phantom.findings import KINDS, Finding, nodule_radius, rib_number
from tfds_builders.cxr_phantom.phrases import expand
from tfds_builders.cxr_phantom.study import Observed, Study

NO_FINDINGS_SECTION, NO_IMPRESSION_SECTION = 0.10, 0.05
ONLY_NO_CHANGE_IMPRESSION, ONLY_NO_CHANGE = 0.35, 0.06  # of the follow-ups in which nothing changed
NEGATIONS_IN_IMPRESSION = 0.72
LUNG_KINDS = {"consolidation", "atelectasis", "edema", "nodule", "mass"}


@dataclasses.dataclass(frozen=True)
class Sentence:
    text: str
    states: dict[str, int]  # CheXpert name -> 1, 0 or -1
    kinds: tuple[str, ...] = ()  # findings it describes


@dataclasses.dataclass(frozen=True)
class Report:
    """`sentence_of` maps a kind of finding to the index of the findings sentence that describes it."""

    text: str
    findings: tuple[Sentence, ...]
    impression: tuple[Sentence, ...]
    impression_text: str
    labels: np.ndarray  # int8 (14,)

    @property
    def findings_text(self) -> str:
        return " ".join(s.text for s in self.findings)

    @property
    def sentence_of(self) -> dict[str, int]:
        return {kind: i for i, s in enumerate(self.findings) for kind in s.kinds}


def write_report(rng: np.random.Generator, study: Study, body: Body) -> Report:
    """A report about `study`; the same random state gives the same words."""
    groups: dict[str, list[Observed]] = {}
    for observed in study.observed:
        groups.setdefault(observed.finding.kind, []).append(observed)
    unsure = {
        kind
        for kind, group in groups.items()
        if kind != "device" and rng.random() < (0.3 if max(o.finding.severity for o in group) < 0.2 else 0.04)
    }
    suspected = _suspected(rng, study) if rng.random() < 0.05 else None
    steady = study.number > 0 and not study.resolved and all(o.change == "unchanged" for o in study.observed)
    draw, section = rng.random(), rng.random()
    if steady and draw < ONLY_NO_CHANGE:
        findings = (_no_change(rng),)
        impression = (_no_change(rng),)
    else:
        findings = _findings(rng, study, groups, unsure, suspected)
        if steady and draw < ONLY_NO_CHANGE_IMPRESSION and section >= NO_FINDINGS_SECTION:
            impression = (_no_change(rng),)
        else:
            impression = _impression(rng, study, groups, unsure, suspected)
    if section < NO_FINDINGS_SECTION:
        findings = ()
    elif section < NO_FINDINGS_SECTION + NO_IMPRESSION_SECTION:
        impression = ()
    numbered = len(impression) > 1 and rng.random() < 0.4
    lines = [f"{i}. {s.text}" if numbered else s.text for i, s in enumerate(impression, 1)]
    text = _layout(rng, study, body, " ".join(s.text for s in findings), lines, numbered)
    return Report(text, findings, impression, " ".join(lines), labels_of(findings + impression))


def labels_of(sentences: tuple[Sentence, ...]) -> np.ndarray:
    """int8 (14,): per observation the strongest statement, present over uncertain over absent.

    "No Finding" is 1 when the text states something and nothing but support devices is present or uncertain.
    """
    rank = {PRESENT: 2, UNCERTAIN: 1, ABSENT: 0}
    states: dict[str, int] = {}
    for sentence in sentences:
        for name, state in sentence.states.items():
            if name not in states or rank[state] > rank[states[name]]:
                states[name] = state
    abnormal = {
        name for name, state in states.items() if state != ABSENT and name not in ("Support Devices", "No Finding")
    }
    if abnormal:
        states.pop("No Finding", None)
    elif states:
        states["No Finding"] = PRESENT
    return label_vector(states)


def _findings(rng, study, groups, unsure, suspected) -> tuple[Sentence, ...]:
    sentences = [_describe(rng, kind, group, kind in unsure) for kind, group in groups.items()]
    absent = _absent_names(study, suspected)
    if suspected:
        sentences.append(suspected)
    for kind in study.resolved:
        sentences.append(_resolved(rng, kind))
    for name, template in phrases.NORMAL.items():
        if name in absent and rng.random() < 0.55:
            sentences.append(Sentence(expand(rng, template), {name: ABSENT}))
            absent.remove(name)
    absent = [name for name in absent if name in phrases.ABSENT]
    if absent and (not sentences or rng.random() < 0.7):
        sentences.append(_negated(rng, absent, 1 + int(rng.integers(2))))
    for _ in range(int(rng.integers(0, 2))):
        text = expand(rng, phrases.NEUTRAL[rng.integers(len(phrases.NEUTRAL))])
        if text not in [s.text for s in sentences]:
            sentences.append(Sentence(text, {}))
    return tuple(sentences[i] for i in rng.permutation(len(sentences)))


def _impression(rng, study, groups, unsure, suspected) -> tuple[Sentence, ...]:
    sentences = [_describe(rng, kind, group, kind in unsure, brief=True) for kind, group in groups.items()]
    if suspected:
        sentences.append(suspected)
    if not sentences or groups.keys() == {"device"}:
        text = expand(rng, phrases.NORMAL_IMPRESSION[rng.integers(len(phrases.NORMAL_IMPRESSION))])
        sentences.insert(0, Sentence(text, {"No Finding": PRESENT}))
    sentences += [_resolved(rng, kind) for kind in study.resolved if rng.random() < 0.5]
    if rng.random() < NEGATIONS_IN_IMPRESSION:
        absent = [name for name in _absent_names(study, suspected) if name in phrases.ABSENT]
        sentences.append(_negated(rng, absent, 1 + int(rng.integers(2))))
    return tuple(sentences)


def _absent_names(study: Study, suspected: Sentence | None) -> list[str]:
    """Observations that may be denied."""
    told = {KINDS[kind].label for kind in study.kinds} | set(suspected.states if suspected else ())
    names = [name for name in CHEXPERT_LABELS if name in phrases.ABSENT and name not in told]
    clear = not (study.kinds & LUNG_KINDS) and not (suspected and told & {KINDS[k].label for k in LUNG_KINDS})
    return [*names, "Lung Opacity"] if clear else names


def _negated(rng: np.random.Generator, absent: list[str], count: int) -> Sentence:
    weights = np.array([0.35 if name == "Support Devices" else 1.0 for name in absent])
    weights[: len(absent)] *= [
        3.0 if n in ("Pleural Effusion", "Pneumothorax", "Consolidation") else 1.0 for n in absent
    ]
    chosen = rng.choice(len(absent), min(count, len(absent)), replace=False, p=weights / weights.sum())
    names = [absent[i] for i in chosen]
    words = [expand(rng, phrases.ABSENT[name]) for name in names]
    text = expand(rng, phrases.NEGATED[0], {"list": phrases.listed(words)})
    return Sentence(text, dict.fromkeys(names, ABSENT))


def _resolved(rng: np.random.Generator, kind: str) -> Sentence:
    name = KINDS[kind].label
    template = phrases.REMOVED if kind == "device" else phrases.RESOLVED
    text = expand(rng, template, {"noun": expand(rng, phrases.ABSENT[name])})
    return Sentence(phrases.sentence(text), {name: ABSENT})


def _no_change(rng: np.random.Generator) -> Sentence:
    return Sentence(expand(rng, phrases.NO_CHANGE[rng.integers(len(phrases.NO_CHANGE))]), {})


def _suspected(rng: np.random.Generator, study: Study) -> Sentence | None:
    """Doubt about something that is not there."""
    kinds = ["effusion", "pneumothorax", "consolidation", "atelectasis", "nodule", "edema"]
    told = {KINDS[kind].label for kind in study.kinds}
    kinds = [k for k in kinds if KINDS[k].label not in told and k not in study.resolved]
    if not kinds:
        return None
    kind = kinds[rng.integers(len(kinds))]
    zone = "" if kind == "edema" else "lower"
    finding = Finding(kind, ("right", "left")[rng.integers(2)], zone, 0.1, "", (0.5,) * 12)
    described = _describe(rng, kind, [Observed(finding, "")], True)
    return Sentence(described.text, described.states)


def _describe(rng, kind: str, group: list[Observed], unsure: bool, *, brief: bool = False) -> Sentence:
    """One sentence about all findings of a kind."""
    first = max((o.finding for o in group), key=lambda f: f.severity)
    change = group[0].change
    slots = _slots(rng, kind, group, first)
    noun = slots["np"]
    states = {KINDS[kind].label: UNCERTAIN if unsure else PRESENT}
    if unsure:
        templates = phrases.UNCERTAIN
    else:
        templates = phrases.CHANGED[change]
        if change == "" and len(group) == 1 and rng.random() < 0.35:
            templates = phrases.EXTRA_PRESENT.get(kind, templates)
        elif brief and change == "" and rng.random() < 0.75:
            templates = ("<Np>.",)
    text = expand(rng, templates[rng.integers(len(templates))], slots)
    if kind == "consolidation" and not unsure and brief:
        addition, state = phrases.PNEUMONIA[rng.integers(len(phrases.PNEUMONIA))]
        text = text[:-1] + expand(rng, addition) + "."
        if state is not None:
            states["Pneumonia"] = state
    if "opacity" in noun:
        states["Lung Opacity"] = states["Consolidation"]
    return Sentence(phrases.sentence(text), states, (kind,))


def _slots(rng, kind: str, group: list[Observed], first: Finding) -> dict[str, str]:
    """Words for a template's slots."""
    grade = int(first.severity >= 0.33) + int(first.severity >= 0.7)
    severity = expand(rng, phrases.SEVERITY[kind][grade])
    singular, plural_form = phrases.NOUNS[first.variant if kind == "device" else kind]
    plural = bool(plural_form) and (len(group) > 1 or not singular)
    millimetres = round(2 * nodule_radius(first) * MM_PER_UNIT)
    lobes = {"upper": "upper lobe", "mid": "middle lobe", "lower": "lower lobe", "": ""}
    words = {
        "severity": severity,
        "side": first.side,
        "zone": first.zone,
        "lobe": "lingular" if (first.side, first.zone) == ("left", "mid") else lobes[first.zone],
        "base": "{basilar|basal}" if first.zone == "lower" else "mid lung",
        "size": f"{millimetres} mm" if kind == "nodule" else f"{millimetres / 10:.1f} cm",
        "rib": phrases.ORDINALS[rib_number(first)] if kind == "fracture" else "",
        "apical": "apical " if first.variant == "apical" else "",
    }
    template = plural_form if plural else singular
    for name, value in words.items():
        template = template.replace(f"<{name}>", value)
    noun = expand(rng, template)
    many = plural and kind not in phrases.MASS_NOUNS
    counted = not plural and kind not in phrases.MASS_NOUNS
    article = phrases.with_article(noun) if counted else noun
    adverbs = {"mild": "mildly", "severe": "severely", "marked": "markedly", "slight": "slightly"}
    return {
        **words,
        "np": noun,
        "Np": phrases.sentence(noun),
        "a np": article,
        "A np": phrases.sentence(article),
        "a new np": f"a new {noun}" if counted else f"new {noun}",
        "is": "are" if many else "is",
        "has": "have" if many else "has",
        "Severity": phrases.sentence(severity),
        "adverb": adverbs.get(
            severity, "moderately" if "moderate" in severity else "mildly" if not grade else "markedly"
        ),
    }


def _layout(rng, study: Study, body: Body, findings: str, impression: list[str], numbered: bool) -> str:
    """The report file: every line begins with one space, headers are in capitals."""
    views = "PORTABLE AP" if study.views[0] == "AP" else "PA"
    complaint = phrases.COMPLAINTS[rng.integers(len(phrases.COMPLAINTS))]
    question = phrases.QUESTIONS[rng.integers(len(phrases.QUESTIONS))]
    prior = "Chest radiograph from ___." if study.number else "None."
    parts = [
        f"EXAMINATION: CHEST ({views})",
        f"INDICATION: ___ year old {body.sex} with {complaint}. {{Evaluate for|Assess for|Rule out}} {question}.",
    ]
    if rng.random() < 0.4:
        parts.append("TECHNIQUE: {Single frontal view|Frontal radiograph} of the chest.")
    parts.append(f"COMPARISON: {prior}")
    lines = ["FINAL REPORT".center(60).rstrip()]
    for part in parts:
        lines += [*_wrap(expand(rng, part)), ""]
    if findings:
        lines += ["FINDINGS:", "", *_wrap(findings), ""]
    if impression:
        body_lines = [line for item in impression for line in _wrap(item)] if numbered else _wrap(" ".join(impression))
        lines += ["IMPRESSION:", "", *body_lines, ""]
    return "\n".join(f" {line}" for line in lines) + "\n"


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, 78, break_long_words=False, break_on_hyphens=False)
