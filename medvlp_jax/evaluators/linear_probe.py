"""Linear probe: how much of the labels a linear model reads from the frozen trunk's pooled features."""

import dataclasses
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from medvlp_jax.evaluators.context import Context
from medvlp_jax.evaluators.scores import (
    Measured,
    Result,
    Score,
    auc,
    measured_auc,
    resampling_weights,
    seeds_interval,
    with_mean,
)
from medvlp_jax.evaluators.subsets import patient_subset
from medvlp_jax.evaluators.truth import Truth, averaged, judged, truth_of

STRENGTHS = (0.01, 0.1, 1.0, 10.0)  # of the inverse L2 penalty, chosen by mean AUC on validation
PIXEL_COMPONENTS = 60
NEWTON_WIDTH = 128  # up to so many features a fit solves for all of them in every step; else it follows gradients
PROTOCOL = (
    "Frozen encoder in evaluation mode; pooled trunk features of one evaluation view, standardised by the "
    "training images; one logistic regression (scikit-learn, L2) per finding, no encoder update. Its strength is "
    f"chosen among {STRENGTHS} by mean AUC on the validation split. Training images of 1 / 10 % of the patients, "
    "five random draws (Student's 95 % interval over the draws); 100 % is one fit (bootstrap interval over test "
    f"patients). Raw pixels: the same on the first {PIXEL_COMPONENTS} principal components of 48x48 grey levels."
)

Split = tuple[NDArray, dict[str, Truth]]  # features N×C, truth per finding


def run(context: Context) -> Result:
    """Scores `linear_probe/<percent>%/auc/{mean,<finding>}`."""
    return probe(context, "linear_probe", _scores_of_subset, PROTOCOL)


def probe(context: Context, protocol_name: str, score_subset: Callable, protocol: str) -> Result:
    """Runs `_probe` on one thread: hundreds of small fits spend most of their time waking up BLAS threads."""
    import sklearn.linear_model  # noqa: F401 - the limit holds for the libraries that are loaded

    with threadpool_limits(1):
        return _probe(context, protocol_name, score_subset, protocol)


def _probe(context: Context, protocol_name: str, score_subset: Callable, protocol: str) -> Result:
    """The frame that probes share: findings, subsets, seeds, intervals, the raw-pixel baseline.

    Args: score_subset: (train features, {finding: truth}, validation Split, test features) -> {finding: score_N}.
    """
    settings = context.settings
    splits = [context.features(s) for s in (context.train_split, context.validation_split, context.split)]
    skipped: dict[str, str] = {}
    labels = [f.fields["labels"] for f in splits]
    names = list(judged(labels, settings.uncertain, skipped))
    if not names:
        return Result([], "", skipped)
    truths = [{n: truth_of(x, n, settings.uncertain) for n in names} for x in labels]
    patients = [f.patient_N for f in splits]
    weight_RxN = resampling_weights(patients[2], settings.resamples)
    spaces = {"pooled": standardised([f.pooled_NxC for f in splits])}
    if context.baselines:
        spaces["pixels"] = principal_components([f.pixels_NxP for f in splits])
    scores, lists = [], {}
    for percent in settings.fractions:
        draws = settings.seeds if percent < 100 else 1
        subsets = [patient_subset(patients[0], truths[0], percent, seed) for seed in range(draws)]
        if percent < 100:
            index_N = splits[0].fields["index"]
            lists[f"{percent:g}%"] = [index_N[rows].tolist() for rows in subsets]
        found = {
            # Several draws give their own interval; the bootstrap is for the single one.
            space: [
                _aucs(features, truths, rows, score_subset, weight_RxN[: 0 if draws > 1 else None]) for rows in subsets
            ]
            for space, features in spaces.items()
        }
        prefix = f"{protocol_name}/{percent:g}%/auc"
        by_space = {space: _summary(prefix, results, settings.findings) for space, results in found.items()}
        for score in by_space["pooled"].values():
            raw = by_space.get("pixels", {}).get(score.name)
            extra = {"raw_pixels": raw.value, "raw_interval": raw.interval} if raw else {}
            scores.append(dataclasses.replace(score, **extra))
    return Result(scores, protocol, skipped, {"probe_subsets.json": {"split": context.train_split, "records": lists}})


def _aucs(features, truths, rows, score_subset, weight_RxN) -> dict[str, Measured]:
    train, validation, test = features
    learnt = {n: Truth(t.keep_N[rows], t.truth_N[rows]) for n, t in truths[0].items()}
    found = {}
    for name, score_N in score_subset(train[rows], learnt, (validation, truths[1]), test).items():
        keep_N, truth_N = truths[2][name]
        found[name] = measured_auc(truth_N[keep_N], score_N[keep_N], weight_RxN[:, keep_N])
    return found


def _summary(prefix: str, results: list[dict[str, Measured]], wanted: Sequence[str]) -> dict[str, Score]:
    """Scores by name: bootstrap interval for one fit, interval over the draws for several."""
    over = averaged(results[0], wanted)
    if len(results) == 1:
        return {s.name: s for s in with_mean(prefix, results[0], over, chance=0.5)}
    scores = {}
    counts = {n: m.count for n, m in results[0].items()}
    per_draw = {n: [found[n].value for found in results] for n in counts}
    for label, draws in {"mean": np.mean([per_draw[n] for n in over], axis=0).tolist(), **per_draw}.items():
        count = max(counts.values()) if label == "mean" else counts[label]
        name = f"{prefix}/{label}"
        scores[name] = Score(name, float(np.mean(draws)), count, seeds_interval(draws), 0.5, seeds=len(draws))
    return scores


def _scores_of_subset(
    train_nxC: NDArray, learnt: Mapping[str, Truth], validation: Split, test_NxC: NDArray
) -> dict[str, NDArray]:
    tried = _fits(train_nxC, learnt)
    features, truths = validation

    def quality(strength: float) -> float:
        areas = [
            auc(truths[n].truth_N[truths[n].keep_N], model.scores(features[truths[n].keep_N]))
            for n, model in tried[strength].items()
        ]
        return float(np.mean(areas))

    best = max(STRENGTHS, key=quality)
    return {n: model.scores(test_NxC) for n, model in tried[best].items()}


class Linear(NamedTuple):
    """One fit: log odds are x @ weight_C + bias."""

    weight_C: NDArray
    bias: float

    def scores(self, feature_NxC: NDArray) -> NDArray:
        """Log odds of N images."""
        return feature_NxC @ self.weight_C + self.bias


def _fits(train_nxC: NDArray, learnt: Mapping[str, Truth]) -> dict[float, dict[str, Linear]]:
    """Strength -> finding -> its model. Findings are independent, and what their fits spend their time on does not hold
    the interpreter: one thread per core. A strength starts from what the one below it found.

    With fewer images than features, fits see coordinates in the span of the images, where the weights of an L2 penalty
    lie: the same models, for the price of n features.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    images, width = train_nxC.shape
    basis_Cxn = np.linalg.qr(train_nxC.T)[0] if images < width else None
    seen = train_nxC if basis_Cxn is None else train_nxC @ basis_Cxn
    solver = "newton-cholesky" if seen.shape[1] <= NEWTON_WIDTH else "lbfgs"

    def fit(truth: Truth) -> list[Linear]:
        model = LogisticRegression(solver=solver, max_iter=200, tol=1e-3, warm_start=True)
        found = []
        for strength in STRENGTHS:
            model.set_params(C=strength).fit(seen[truth.keep_N], truth.truth_N[truth.keep_N])
            weight = model.coef_[0]
            found.append(Linear(weight if basis_Cxn is None else basis_Cxn @ weight, float(model.intercept_[0])))
        return found

    # Warnings are caught around all threads: the list of filters is the interpreter's.
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.simplefilter("ignore", ConvergenceWarning)  # a weak penalty on few images needs no last digit
        waiting = {n: pool.submit(fit, truth) for n, truth in learnt.items()}
        found = {n: one.result() for n, one in waiting.items()}
    return {strength: {n: fits[i] for n, fits in found.items()} for i, strength in enumerate(STRENGTHS)}


def standardised(splits: list[NDArray]) -> list[NDArray]:
    """Each feature minus its mean over the first split, divided by its deviation there; constant ones become 0."""
    mean_C, deviation_C = splits[0].mean(axis=0), splits[0].std(axis=0)
    factor_C = np.where(deviation_C > 1e-6 * np.maximum(np.abs(mean_C), 1e-6), 1 / np.maximum(deviation_C, 1e-12), 0)
    return [((x - mean_C) * factor_C).astype(np.float32) for x in splits]


def principal_components(splits: list[NDArray]) -> list[NDArray]:
    """Whitened leading principal components, fitted on the first split."""
    from sklearn.decomposition import PCA

    components = min(PIXEL_COMPONENTS, *splits[0].shape)
    model = PCA(components, whiten=True, svd_solver="randomized", random_state=0).fit(splits[0])
    return [model.transform(x).astype(np.float32) for x in splits]
