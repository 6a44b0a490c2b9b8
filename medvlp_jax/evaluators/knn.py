"""k nearest neighbours on the frozen trunk's pooled features: no fit, no strength to choose."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from medvlp_jax.evaluators.context import Context
from medvlp_jax.evaluators.linear_probe import Split, probe
from medvlp_jax.evaluators.scores import Result
from medvlp_jax.evaluators.truth import Truth
from medvlp_jax.heatmap import unit

NEIGHBOURS = 20
TEMPERATURE = 0.07  # of the neighbours' weights, as in Wu et al. 2018 (arXiv 1805.01978)
PROTOCOL = (
    f"Pooled trunk features as for the linear probe; cosine; share of present among the {NEIGHBOURS} nearest "
    f"training images (all, when fewer), weighted by exp(cosine / {TEMPERATURE}). Same subsets, seeds and "
    "intervals as the linear probe."
)


def run(context: Context) -> Result:
    """Scores `knn/<percent>%/auc/{mean,<finding>}`."""
    return probe(context, "knn", _scores_of_subset, PROTOCOL)


def _scores_of_subset(
    train_nxC: NDArray, learnt: Mapping[str, Truth], validation: Split, test_NxC: NDArray
) -> dict[str, NDArray]:
    del validation
    train, test = unit(train_nxC), unit(test_NxC)
    scores = {name: np.empty(len(test)) for name in learnt}
    for start in range(0, len(test), 1024):
        cosine_qxn = test[start : start + 1024] @ train.T
        for name, truth in learnt.items():
            kept_qxn = np.where(truth.keep_N, cosine_qxn, -np.inf) if not truth.keep_N.all() else cosine_qxn
            k = min(NEIGHBOURS, int(truth.keep_N.sum()))
            nearest_qxk = np.argpartition(-kept_qxn, k - 1, axis=1)[:, :k]
            weight_qxk = np.exp((np.take_along_axis(kept_qxn, nearest_qxk, axis=1) - 1) / TEMPERATURE)
            share_q = (weight_qxk * truth.truth_N[nearest_qxk]).sum(axis=1) / np.maximum(weight_qxk.sum(axis=1), 1e-30)
            scores[name][start : start + 1024] = share_q
    return scores
