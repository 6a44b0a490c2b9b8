"""From record labels to yes and no: which findings a split can judge, and by which images."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medvlp_jax.data.labels import CHEXPERT_LABELS, PRESENT, UNCERTAIN, position

UNCERTAIN_POLICIES = ("drop", "positive", "negative")
# Parents of other findings and what is no finding at all: they do not make an image one of several classes.
_NO_CLASS = ("No Finding", "Enlarged Cardiomediastinum", "Lung Opacity", "Support Devices")


class Truth(NamedTuple):
    """keep_N: images that take part. truth_N: whether the finding is present (meaningless where not kept)."""

    keep_N: NDArray[np.bool_]
    truth_N: NDArray[np.bool_]

    @property
    def both(self) -> bool:
        """Whether present and absent both occur."""
        kept = self.truth_N[self.keep_N]
        return bool(kept.any() and not kept.all())


def truth_of(labels_Nx14: NDArray, name: str, uncertain: str = "drop") -> Truth:
    """Present against absent or not mentioned. Raises: ValueError for an unknown policy for uncertain labels."""
    if uncertain not in UNCERTAIN_POLICIES:
        raise ValueError(f"evaluation.uncertain={uncertain!r}: choose one of {', '.join(UNCERTAIN_POLICIES)}.")
    state_N = np.asarray(labels_Nx14)[:, CHEXPERT_LABELS.index(name)]
    unsure_N = state_N == UNCERTAIN
    present_N = (state_N == PRESENT) | (unsure_N & (uncertain == "positive"))
    return Truth(~unsure_N if uncertain == "drop" else np.ones(len(state_N), bool), present_N)


def judged(labels: Sequence[NDArray], uncertain: str, skipped: dict[str, str]) -> Iterator[str]:
    """Findings with both classes in every one of several label arrays N×14; the others go to `skipped` with why."""
    for name in CHEXPERT_LABELS:
        truths = [truth_of(x, name, uncertain) for x in labels]
        if all(t.both for t in truths):
            yield name
            continue
        kept = next(t.truth_N[t.keep_N] for t in truths if not t.both)
        skipped[name] = "no image to judge" if not len(kept) else f"every image {'has' if kept.all() else 'lacks'} it"


def averaged(names: Iterable[str], wanted: Sequence[str]) -> list[str]:
    """Those of the judged findings that a mean is taken over: the wanted ones, or all but No Finding.

    Raises: ValueError for names that are no labels, or when none of the wanted findings can be judged.
    """
    wanted = [CHEXPERT_LABELS[position(name)] for name in wanted]
    names = list(names)
    chosen = [name for name in names if name in wanted] if wanted else [name for name in names if name != "No Finding"]
    if wanted and not chosen:
        raise ValueError(
            f"None of evaluation.findings {', '.join(wanted)} can be judged here. Judged: {', '.join(names)}. "
            "Use --config.evaluation.findings='()' for all."
        )
    return chosen or names


def single_class(labels_Nx14: NDArray) -> NDArray[np.int64]:
    """The one finding of each image as its position in CHEXPERT_LABELS; `No Finding` where nothing is; else -1.

    Parents (Lung Opacity, Enlarged Cardiomediastinum) and devices are looked through; uncertain findings exclude.
    """
    labels_Nx14 = np.asarray(labels_Nx14)
    own = np.array([name not in _NO_CLASS for name in CHEXPERT_LABELS])
    present_Nx14 = (labels_Nx14 == PRESENT) & own
    count_N = present_Nx14.sum(axis=1)
    unsure_N = ((labels_Nx14 == UNCERTAIN) & own).any(axis=1)
    normal = CHEXPERT_LABELS.index("No Finding")
    class_N = np.where(count_N == 1, present_Nx14.argmax(axis=1), -1)
    class_N = np.where((count_N == 0) & (labels_Nx14[:, normal] == PRESENT), normal, class_N)
    return np.where(unsure_N, -1, class_N)
