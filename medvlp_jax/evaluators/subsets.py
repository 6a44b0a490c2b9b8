"""Which training patients a probe may learn from: fractions drawn by patient, the same for every model."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray


def patient_subset(
    patient_N: NDArray, truths: Mapping[str, tuple[NDArray, NDArray]], percent: float, seed: int
) -> NDArray[np.int64]:
    """Rows of all images of a random `percent` of the patients.

    A finding that the draw leaves without a positive or without a negative image gets the next patient of the random
    order who has one, so that every finding can be learnt.

    Args: patient_N: patient of each image. truths: finding -> (keep_N, truth_N), as `truth.truth_of` gives.
    Raises: ValueError for a percentage outside (0, 100].
    """
    if not 0 < percent <= 100:
        raise ValueError(
            f"evaluation.fractions holds {percent!r}: percent of the training patients, above 0, up to 100."
        )
    _, index_N = np.unique(patient_N, return_inverse=True)
    count = int(index_N.max()) + 1
    order = np.random.default_rng(seed).permutation(count)
    place_of_patient = np.empty(count, np.int64)
    place_of_patient[order] = np.arange(count)
    place_N = place_of_patient[index_N]
    limit = max(1, round(count * percent / 100))
    chosen = set(order[:limit].tolist())
    for keep_N, truth_N in truths.values():
        for wanted in (True, False):
            having_N = keep_N & (truth_N == wanted)
            if having_N.any() and not np.isin(index_N[having_N], list(chosen)).any():
                chosen.add(int(order[place_N[having_N].min()]))
    return np.flatnonzero(np.isin(index_N, list(chosen)))
