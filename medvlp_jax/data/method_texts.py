"""Which text of a report each published method shows its text encoder, by method name.

    units_of("Heart is enlarged. Small effusion.", "Cardiomegaly.", "gloria")    # ['cardiomegaly']: one is drawn a step

One entry per method: sections and their order, what a training step sees, sentence rule, cleaning, what is dropped.
Sources: the public code of each method, as named in its entry. `data.sections.apply_policy` and
`data.sentences.split_sentences` do the work, so the entries are also the documentation of the differences.
"""

from __future__ import annotations

import dataclasses
import re

from medvlp_jax.data.cleaning import clean
from medvlp_jax.data.sections import apply_policy, is_missing
from medvlp_jax.data.sentences import split_sentences

UNITS = ("report", "section", "sentence")


@dataclasses.dataclass(frozen=True)
class MethodText:
    """Text of one method.

    sections: fields of the record, in the order in which they are joined. unit: "report" (one text), "section" (one per
    section) or "sentence" (a step draws one of them). sentences: rule of `sentences.RULES`; with unit "report" the
    sentences are joined again by blanks; "" leaves the text whole. cleaning: rule of `cleaning.RULES`. policy: rule of
    `sections.POLICIES` for missing sections. placeholder: text for a missing section under the policy of that name.
    min_report_tokens: a report with fewer words has no units. source: where the rule was read.
    """

    sections: tuple[str, ...]
    unit: str
    source: str
    sentences: str = ""
    cleaning: str = "collapse"
    policy: str = "mask"
    placeholder: str = ""
    min_report_tokens: int = 1


METHOD_TEXTS: dict[str, MethodText] = {
    "convirt": MethodText(
        ("findings", "impression"), "sentence", "arXiv 2010.00747; edreisMD/ConVIRT-pytorch", sentences="simple"
    ),
    "gloria": MethodText(("impression",), "sentence", "marshuang80/gloria", sentences="gloria", cleaning="none"),
    "mgca": MethodText(
        ("impression", "findings"),
        "report",
        "HKU-MedAI/MGCA",
        sentences="gloria",
        cleaning="none",
        policy="drop_if_both_missing",
        min_report_tokens=3,
    ),
    "lovt": MethodText(
        ("findings", "impression"),
        "report",
        "philip-mueller/lovt",
        policy="drop_if_both_missing",
        min_report_tokens=3,
    ),
    "medclip": MethodText(
        ("findings", "impression"), "sentence", "RyanWangZf/MedCLIP", sentences="medclip", cleaning="none"
    ),
    "medclip_old": MethodText(
        ("findings", "impression"), "sentence", "RyanWangZf/MedCLIP", sentences="medclip_old", cleaning="none"
    ),
    "imitate": MethodText(("findings", "impression"), "section", "cheliu-computation/IMITATE-TMI2024", cleaning="none"),
    "mflag": MethodText(
        ("impression",), "report", "cheliu-computation/M-FLAG-MICCAI2023", policy="fallback_impression"
    ),
    "g2d": MethodText(("impression",), "report", "arXiv 2312.01522", cleaning="g2d", policy="fallback_impression"),
    "chexzero": MethodText(
        ("impression",), "report", "rajpurkarlab/CheXzero", policy="placeholder", placeholder="NO IMPRESSION"
    ),
    "cxr_clip": MethodText(("impression",), "report", "Soombit-ai/cxr-clip#10", policy="longest"),
    "blip2": MethodText(("impression",), "report", "salesforce/LAVIS", cleaning="blip2", policy="fallback_impression"),
}
"""Method -> its text. With `fallback_impression` and `longest` both fields hold one text, so one is named."""


def method_text(method: str) -> MethodText:
    """The entry of a method. Raises: ValueError listing the methods."""
    if method not in METHOD_TEXTS:
        raise ValueError(f"No text rule for method {method!r}. Methods: {', '.join(METHOD_TEXTS)}.")
    return METHOD_TEXTS[method]


def units_of(
    findings: object, impression: object, method: str, *, deid: str = "keep", placeholder: str = "___"
) -> list[str]:
    """The texts among which a training step of `method` chooses, in order; [] when the method drops the report.

    Args: findings, impression: sections, or None, NaN, "" and the like for missing. deid, placeholder: see
      `cleaning.clean`.
    Raises: ValueError for an unknown method.
    """
    rule = method_text(method)
    if is_missing(findings) and is_missing(impression) and rule.policy != "placeholder":
        return []
    filled = apply_policy(findings, impression, rule.policy, placeholder=rule.placeholder)
    parts = [clean(filled[name], "none", deid=deid, placeholder=placeholder) for name in rule.sections]
    parts = [part for part in parts if part.strip()]
    if len(re.findall(r"\w+", " ".join(parts))) < rule.min_report_tokens:
        return []
    if rule.sentences:
        units = [sentence for part in parts for sentence in split_sentences(part, rule.sentences)]
        if rule.unit == "report":
            units = [" ".join(units)]
    else:
        units = parts if rule.unit == "section" else [" ".join(parts)]
    return [unit for unit in (clean(unit, rule.cleaning) for unit in units) if unit.strip()]
