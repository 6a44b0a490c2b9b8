"""The text and the labels of a record, as the settings of a build want them: removed words, cleaning, sentences, rules.

Settings (`tfds_builders.common.LocalConfig`): `deid`, `cleaning` and `sentences` name rules of `cleaning.DEID`,
`cleaning.RULES` and `sentences.RULES`; `labels` one of `LABELS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medvlp_jax.data import cleaning, sentences
from medvlp_jax.data.label_rules import labels_of_sections
from medvlp_jax.data.labels import label_states

LABELS: dict[str, str] = {
    "own": "what the data set says",
    "rules": "read from findings and impression by `label_rules`; none where there is no text",
    "fill": "the set's own where it mentions anything, else by rules",
}
"""Where the fourteen labels of a record come from."""

CHOICES: dict[str, tuple[str, ...]] = {
    "labels": tuple(LABELS),
    "cleaning": tuple(cleaning.RULES),
    "deid": cleaning.DEID,
    "sentences": tuple(sentences.RULES),
}
"""Settings of text with a fixed set of values."""


def text_fields(item: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """Fields of the record: findings, impression, report, sentences, labels; and `facts`, slugs to be counted.

    Labels are read and sentences are split before cleaning, which may take the full stops; `report` is not cleaned, so
    that its headers stay. Sentences that an item brings (phrases with boxes) keep their places.
    """
    deid = {name: cleaning.mark_removed_words(item.get(name, ""), config.deid) for name in _TEXTS}
    own = item.get("labels", {})
    labels, source = own, "the set's own" if own else "none"
    text = any(deid[name].strip() for name in ("findings", "impression"))
    if text and (config.labels == "rules" or (config.labels == "fill" and not own)):
        labels, source = label_states(labels_of_sections(deid["findings"], deid["impression"])), "by rules"
    elif config.labels == "rules":
        labels, source = {}, "none, no text"
    if "sentences" in item:
        parts = [cleaning.mark_removed_words(sentence, config.deid) for sentence in item["sentences"]]
    else:
        parts = sentences.split_sentences(deid["findings"], config.sentences)
    parts = [cleaning.clean(part, config.cleaning) for part in parts]
    return {
        "findings": cleaning.clean(deid["findings"], config.cleaning),
        "impression": cleaning.clean(deid["impression"], config.cleaning),
        "report": deid["report"],
        "sentences": parts if "sentences" in item else [part for part in parts if part.strip()],
        "labels": labels,
        "facts": [] if config.labels == "own" else [f"labels {source}"],
    }


_TEXTS = ("findings", "impression", "report")
