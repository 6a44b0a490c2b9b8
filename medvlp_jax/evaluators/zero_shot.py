"""Zero-shot classification: is an image nearer to the texts that affirm a finding or to those that deny it."""

import numpy as np
from numpy.typing import NDArray

from medvlp_jax.data.labels import CHEXPERT_LABELS
from medvlp_jax.evaluators import prompts
from medvlp_jax.evaluators.context import Context, Features
from medvlp_jax.evaluators.pair_scores import pair_scores
from medvlp_jax.evaluators.scores import (
    Measured,
    Result,
    Score,
    best_threshold,
    f1_and_mcc,
    mean_interval,
    measured_auc,
    resampling_weights,
    with_mean,
)
from medvlp_jax.evaluators.truth import averaged, judged, single_class, truth_of
from medvlp_jax.heatmap import unit

PROTOCOL = (
    "Score of a finding: sigmoid of cos(image, affirming text) - cos(image, denying text), no logit scale; "
    "prompts {prompts!r}, {count} texts per side on average, embeddings normalised, averaged, normalised again "
    "(CheXzero); `auc_mean_of_logits` averages cosines over prompts instead (MedCLIP). Text space: {section}. "
    "Uncertain labels: {uncertain}; not mentioned counts as absent. Means are over {over}, as far as both classes"
    " occur. F1 and MCC: the threshold of greatest MCC on the {validation} split (corrected) or of greatest F1 "
    "and MCC on the scored split itself (as_published: MedKLIP, KAD). Multi-class: images with exactly one "
    "finding or none, argmax of cos(image, affirming text); `multiclass_z` standardises each class over the "
    "scored images first (as_published: GLoRIA). Bootstrap over patients. No labels are used for training or "
    "selection."
)
OWN_PROMPTS, OWN_SEED = 5, 6
OWN_PROTOCOL = (
    " `own` (GLoRIA's protocol): mean of the cosine and the method's local score of an image and a text, the greatest "
    f"over {OWN_PROMPTS} affirming texts per finding, drawn with seed {OWN_SEED}; `own/multiclass_z` standardises "
    "each class over the scored images before the argmax."
)


def run(context: Context) -> Result:
    """Scores `zero_shot/{auc,auc_mean_of_logits,f1,mcc}/{mean,<finding>}`, `zero_shot/{multiclass,multiclass_z}/...`;
    for a method with local scores also `zero_shot/own/{auc,multiclass_z}/...`, its own protocol.

    Thresholds need a validation split other than the scored one; scored on validation itself, F1 and MCC are left out.
    """
    settings = context.settings
    pairs = prompts.load(settings.prompts)
    features = context.features(context.split)
    section = context.section(features)
    skipped: dict[str, str] = {name: "no prompt for it" for name in CHEXPERT_LABELS if name not in pairs}
    tuned = context.validation_split if context.validation_split != context.split else None
    names = [n for n in judged([features.fields["labels"]], settings.uncertain, skipped) if n in pairs]
    if not names:
        return Result([], "", skipped)
    sides = prompts.split(pairs, np.asarray(context.embed_texts(prompts.texts(pairs))[section]))
    weight_RxN = resampling_weights(features.patient_N, settings.resamples)
    scores = []
    for measure, rule in (("auc", "chexzero"), ("auc_mean_of_logits", "medclip")):
        scores += _aucs(measure, rule, features, section, names, sides, settings, weight_RxN)
    if tuned:
        scores += _decisions(context.features(tuned), features, section, names, sides, settings, weight_RxN)
    scores += _multiclass(features, section, sides, weight_RxN)
    own = _own(context, pairs, features, section, names, weight_RxN)
    protocol = PROTOCOL.format(
        prompts=settings.prompts if settings.prompts in (prompts.PLAIN, prompts.ENSEMBLE) else "a file of the user's",
        count=round(float(np.mean([len(side) for pair in pairs.values() for side in pair])), 1),
        section=section,
        uncertain=settings.uncertain,
        over=", ".join(settings.findings) or "all findings but No Finding",
        validation=tuned or "(none)",
    )
    return Result(scores + own, protocol + (OWN_PROTOCOL if own else ""), skipped)


def _aucs(measure, rule, features, section, names, sides, settings, weight_RxN) -> list[Score]:
    found = {}
    for name in names:
        keep_N, truth_N = truth_of(features.fields["labels"], name, settings.uncertain)
        score_N = pair_scores(features.image[section], *sides[name], rule=rule).score_N[keep_N]
        found[name] = measured_auc(truth_N[keep_N], score_N, weight_RxN[:, keep_N])
    return with_mean(f"zero_shot/{measure}", found, averaged(names, settings.findings), chance=0.5)


def _decisions(tuning: Features, features: Features, section, names, sides, settings, weight_RxN) -> list[Score]:
    found: dict[str, dict[str, Measured]] = {}
    for name in names:
        keep_N, truth_N = truth_of(features.fields["labels"], name, settings.uncertain)
        score_N = pair_scores(features.image[section], *sides[name]).score_N[keep_N]
        truth_N, weight = truth_N[keep_N], weight_RxN[:, keep_N]
        own = truth_of(tuning.fields["labels"], name, settings.uncertain)
        thresholds = {
            "f1_test_threshold": best_threshold(truth_N, score_N, "f1"),
            "mcc_test_threshold": best_threshold(truth_N, score_N, "mcc"),
        }
        if own.both:
            tuning_score_N = pair_scores(tuning.image[section], *sides[name]).score_N[own.keep_N]
            thresholds["f1"] = thresholds["mcc"] = best_threshold(own.truth_N[own.keep_N], tuning_score_N)
        for kind, threshold in thresholds.items():
            which = 0 if kind.startswith("f1") else 1
            value, row_R = (f1_and_mcc(truth_N, score_N >= threshold, w)[which] for w in (None, weight))
            found.setdefault(kind, {})[name] = Measured(float(value), row_R, len(truth_N))
    scores = []
    for kind in ("f1", "mcc", "f1_test_threshold", "mcc_test_threshold"):
        if kind in found:
            variant = "as_published" if kind.endswith("test_threshold") else "corrected"
            over = averaged(found[kind], settings.findings)
            scores += with_mean(f"zero_shot/{kind}", found[kind], over, variant=variant)
    return scores


def _multiclass(features: Features, section: str, sides, weight_RxN: NDArray) -> list[Score]:
    cosine = {name: pair_scores(features.image[section], *pair).positive_N for name, pair in sides.items()}
    return [
        *_accuracy("zero_shot/multiclass", "corrected", features, cosine, weight_RxN),
        *_accuracy("zero_shot/multiclass_z", "as_published", features, cosine, weight_RxN, standardise=True),
    ]


def _accuracy(
    measure: str,
    variant: str,
    features: Features,
    score: dict[str, NDArray],
    weight_RxN: NDArray,
    *,
    standardise: bool = False,
) -> list[Score]:
    """Share of images with one finding or none whose greatest score is that of their class."""
    class_N = single_class(features.fields["labels"])
    classes = [c for c in np.unique(class_N) if c >= 0 and CHEXPERT_LABELS[c] in score]
    rows_N = np.isin(class_N, classes)
    if len(classes) < 2:
        return []
    score_nxC = np.stack([score[CHEXPERT_LABELS[c]][rows_N] for c in classes], axis=1)
    if standardise:
        score_nxC = (score_nxC - score_nxC.mean(axis=0)) / np.maximum(score_nxC.std(axis=0), 1e-12)
    right_n = (np.asarray(classes)[score_nxC.argmax(axis=1)] == class_N[rows_N]).astype(np.float64)
    interval = mean_interval(right_n, weight_RxN[:, rows_N])
    chance = 1 / len(classes)
    return [Score(f"{measure}/accuracy", float(right_n.mean()), len(right_n), interval, chance, variant=variant)]


def _own(context: Context, pairs, features: Features, section: str, names, weight_RxN: NDArray) -> list[Score]:
    """GLoRIA's classification: global and local score together. Source: marshuang80/gloria@416466a.

    For other methods with a local score the protocol is the same and the score is theirs.
    """
    drawn = prompts.drawn(pairs, OWN_PROMPTS, OWN_SEED)
    texts = list(dict.fromkeys(text for some in drawn.values() for text in some))
    local_NxT = context.local_scores(context.split, texts)
    if local_NxT is None:
        return []
    text_TxD = unit(np.asarray(context.embed_texts(texts)[section]), np.float64)
    score_NxT = (unit(features.image[section], np.float64) @ text_TxD.T + local_NxT) / 2
    columns = {name: [texts.index(text) for text in some] for name, some in drawn.items()}
    score = {name: score_NxT[:, own].max(axis=1) for name, own in columns.items()}
    settings, found = context.settings, {}
    for name in names:
        keep_N, truth_N = truth_of(features.fields["labels"], name, settings.uncertain)
        found[name] = measured_auc(truth_N[keep_N], score[name][keep_N], weight_RxN[:, keep_N])
    return [
        *with_mean("zero_shot/own/auc", found, averaged(names, settings.findings), chance=0.5),
        *_accuracy("zero_shot/own/multiclass_z", "as_published", features, score, weight_RxN, standardise=True),
    ]
