"""The words of the reports: noun phrases, templates and neutral sentences.

Templates are expanded by `expand`: `{a|b}` picks one alternative, `<slot>` is filled in.
"""

import re
from collections.abc import Mapping

import numpy as np

_CHOICE = re.compile(r"\{([^{}]*)\}")

ORDINALS = ("", "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
SEVERITY: dict[str, tuple[str, str, str]] = {
    "effusion": ("{trace|tiny|very small}", "small", "{moderate|moderate-sized|large}"),
    "pneumothorax": ("{tiny|trace}", "small", "{moderate|large}"),
    "consolidation": ("{subtle|faint|mild}", "{patchy|focal|moderate}", "{dense|extensive|severe}"),
    "atelectasis": ("{minimal|mild}", "{mild|moderate}", "{moderate|marked}"),
    "cardiomegaly": ("{mild|borderline}", "{moderate|mild to moderate}", "{severe|marked}"),
    "edema": ("{mild|minimal}", "moderate", "{severe|marked}"),
    "thickening": ("{mild|subtle}", "moderate", "{marked|extensive}"),
    "mediastinum": ("{mild|slight}", "moderate", "{marked|pronounced}"),
    "fracture": ("nondisplaced", "{minimally|mildly} displaced", "displaced"),
    "nodule": ("", "", ""),
    "mass": ("", "", ""),
    "device": ("", "", ""),
}

# Noun phrases. `count` nouns take an article; (singular, plural) where a finding may be on both sides.
NOUNS: dict[str, tuple[str, str]] = {
    "effusion": (
        "<severity> <side> {pleural effusion|pleural effusion|pleural fluid collection}",
        "<severity> {bilateral|right and left} pleural effusions",
    ),
    "pneumothorax": ("<severity> <side> {apical |}pneumothorax", ""),
    "consolidation": (
        "<severity> {<side> <zone> {lung|zone} consolidation|<side> <lobe> consolidation|"
        "airspace consolidation in the <side> <zone> {lung|zone}|"
        "consolidative opacity in the <side> <zone> {lung|zone}}",
        "",
    ),
    "atelectasis": (
        "<severity> <side> {<base>|<base>|<lobe>} {linear |plate-like |subsegmental |}atelectasis",
        "<severity> {bibasilar|bilateral} {linear |plate-like |subsegmental |}atelectasis",
    ),
    "cardiomegaly": ("<severity> {cardiomegaly|cardiomegaly|enlargement of the {heart|cardiac silhouette}}", ""),
    "edema": ("<severity> {pulmonary|pulmonary|interstitial} edema", ""),
    "nodule": (
        "{<size> {pulmonary |}nodule in the <side> <zone> {lung|zone}|<side> <lobe> nodule measuring <size>|"
        "<size> <side> <lobe> nodule}",
        "{bilateral pulmonary nodules|pulmonary nodules in both lungs} measuring up to <size>",
    ),
    "mass": (
        "{<size> mass in the <side> <zone> {lung|zone}|<side> <lobe> mass measuring <size>|<size> <side> <lobe> mass}",
        "",
    ),
    "fracture": (
        "<severity> {fracture of the <side> <rib> rib|<side> <rib> rib fracture}",
        "{bilateral rib fractures|fractures of right and left ribs}",
    ),
    "thickening": ("<severity> <side> <apical>pleural thickening", ""),
    "mediastinum": ("<severity> {widening of the {superior |}mediastinum|mediastinal widening}", ""),
    "pacemaker": ("<side>-sided {pacemaker|cardiac pacing device} with {intact leads|leads in the right heart}", ""),
    "central line": (
        "<side>{-sided|} {central venous catheter|central line} {ending|terminating|with its tip} in the "
        "superior vena cava",
        "",
    ),
    "endotracheal tube": ("endotracheal tube {above the carina|in standard position}", ""),
    "enteric tube": ("{enteric|nasogastric} tube {passing below the diaphragm|coursing into the stomach}", ""),
    "sternotomy wires": ("", "{median |}sternotomy wires"),
    "chest tube": ("<side>{-sided|} chest tube", ""),
}
MASS_NOUNS = {"atelectasis", "cardiomegaly", "edema", "thickening", "mediastinum"}  # no article

PRESENT = (
    "{There <is>|There <is>|Note is made of} <a np>.",
    "<Np> <is> {seen|present|noted|identified}.",
    "<Np>.",
    "{Frontal images show|The radiograph shows|Images demonstrate} <a np>.",
)
CHANGED: dict[str, tuple[str, ...]] = {
    "": PRESENT,
    "new": (
        "{There <is>|Since the prior study there <is>} <a new np>.",
        "New <np> <is> {seen|present|noted}.",
        "New <np>.",
    ),
    "unchanged": (
        "<Np> <is> {unchanged|stable} {since the prior study|compared to the prior exam|in the interval|}.",
        "{Unchanged|Stable|Persistent} <np>.",
        "Again seen <is> <a np>, {unchanged|stable in appearance}.",
    ),
    "worse": (
        "<Np> <has> {increased|worsened|progressed} {since the prior study|in the interval|}.",
        "Interval {increase in|worsening of|progression of} <np>.",
    ),
    "better": (
        "<Np> <has> {decreased|improved} {since the prior study|in the interval|}.",
        "Interval {decrease in|improvement of} <np>.",
    ),
}
UNCERTAIN = (
    "{Possible|Questionable} <np>.",
    "<A np> cannot be excluded.",
    "Cannot exclude <a np>.",
    "{Appearances|Findings} may represent <a np>.",
)
EXTRA_PRESENT: dict[str, tuple[str, ...]] = {  # only for a single finding that has not been followed
    "effusion": ("Blunting of the <side> costophrenic angle {is compatible with|reflects} <a np>.",),
    "pneumothorax": (
        "A visceral pleural line is {visible|seen} at the <side> apex, {reflecting|in keeping with} <a np>.",
    ),
    "cardiomegaly": ("The {heart|cardiac silhouette} is <adverb> enlarged.", "<Severity> cardiomegaly <is> present."),
    "edema": ("Perihilar haziness and indistinct vessels {are compatible with|reflect} <np>.",),
    "mediastinum": ("The {superior |}mediastinum is <adverb> widened.",),
    "fracture": ("{Cortical step-off|Deformity} of the <side> <rib> rib reflects <a np>.",),
}
PNEUMONIA = (
    ("", None),
    ("", None),
    (", {consistent with|compatible with} pneumonia", 1),
    (", concerning for pneumonia", -1),
)

# What an absent finding is called in a list after "no".
ABSENT: dict[str, str] = {
    "Pleural Effusion": "{pleural effusion|effusion}",
    "Pneumothorax": "pneumothorax",
    "Consolidation": "{focal |}consolidation",
    "Edema": "{pulmonary |}edema",
    "Atelectasis": "atelectasis",
    "Fracture": "{rib |acute |displaced }fracture",
    "Lung Lesion": "{pulmonary |suspicious |}{nodule|nodule|mass}",
    "Pleural Other": "pleural thickening",
    "Cardiomegaly": "cardiomegaly",
    "Enlarged Cardiomediastinum": "mediastinal widening",
    "Support Devices": "{indwelling lines|support device}",
}
NEGATED = ("{No|There is no|There is no|There is no evidence of|No evidence of|Negative for} <list>.",)
NORMAL: dict[str, str] = {
    "Cardiomegaly": "{The heart size is|The cardiac silhouette is|Heart size is} {normal|within normal limits}.",
    "Enlarged Cardiomediastinum": "The mediastinal {contour is|silhouette is|contours are} {normal|unremarkable}.",
    "Lung Opacity": "{The lungs are|Lungs are|Both lungs are} {clear|well expanded and clear}.",
}
RESOLVED = "{Previously seen <noun> has resolved|Interval resolution of <noun>|The prior <noun> has resolved}."
REMOVED = "{Interval removal of the|There has been removal of the} {support device|indwelling device}."
NEUTRAL = (
    "The {visualized|imaged} upper abdomen {looks as expected|is grossly intact}.",
    "{Mild degenerative|Degenerative} changes are {noted|seen} in the thoracic spine.",
    "The aorta is {mildly |}tortuous.",
    "The trachea is midline.",
    "{A frontal view|Frontal view} of the chest was obtained.",
    "The patient is {slightly |}rotated.",
    "Differences in technique limit comparison of fine detail.",
    "The imaged soft tissues look as expected.",
    "{Hilar contours look|The hila look} as expected.",
    "Overlying soft tissue {slightly |}limits evaluation of the lower zones.",
    "Bony mineralization is appropriate for age.",
    "Mild curvature of the spine is seen.",
)
NO_CHANGE = (
    "No {significant interval|relevant|interval} change {since|compared to} the prior {study|exam}.",
    "No significant interval change.",
    "Unchanged {appearance of the chest|examination} {since|compared to} the prior {study|exam}.",
)
NORMAL_IMPRESSION = (
    "No acute {cardiopulmonary|intrathoracic} {process|abnormality|disease}.",
    "Normal {chest radiograph|chest|study}.",
)
COMPLAINTS = (
    "cough",
    "fever and cough",
    "shortness of breath",
    "chest pain",
    "a fall",
    "hypoxia",
    "weight loss",
    "recent surgery",
    "leg swelling",
    "a preoperative examination",
)
QUESTIONS = ("pneumonia", "acute process", "effusion", "edema", "pneumothorax", "interval change", "line placement")


def expand(rng: np.random.Generator, template: str, slots: Mapping[str, str] | None = None) -> str:
    """Picks alternatives from the inside out, fills slots, and tidies white space."""
    while match := _CHOICE.search(template):
        options = match.group(1).split("|")
        template = template[: match.start()] + options[rng.integers(len(options))] + template[match.end() :]
    for name, value in (slots or {}).items():
        template = template.replace(f"<{name}>", value)
    return re.sub(r"\s+([.,])", r"\1", " ".join(template.split()))


def sentence(text: str) -> str:
    """With a capital first letter."""
    return text[:1].upper() + text[1:]


def with_article(noun: str) -> str:
    """ "a" or "an" before a noun phrase, by sound (also "an 18 mm ...")."""
    return ("an " if re.match(r"[aeiou]|8|11\b|18\b", noun) else "a ") + noun


def listed(words: list[str]) -> str:
    """ "a", "a or b", "a, b, or c"."""
    return " or ".join(words) if len(words) < 3 else f"{', '.join(words[:-1])}, or {words[-1]}"
