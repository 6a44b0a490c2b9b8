"""How far a linear model on raw pixels gets: the number that a learned encoder has to beat.

48×48 grey levels, the first 60 principal components, logistic regression per finding, AUC on unseen patients.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import cv2
import numpy as np

from medvlp_jax.data.labels import CHEXPERT_LABELS, PRESENT

SIDE, COMPONENTS = 48, 60


@dataclasses.dataclass(frozen=True)
class Baseline:
    """AUC per finding (only those with both classes among the training and the test images), and image counts."""

    auc: dict[str, float]
    train_count: int
    test_count: int
    test_positives: dict[str, int]

    @property
    def mean(self) -> float:
        return float(np.mean(list(self.auc.values()))) if self.auc else float("nan")

    def lines(self) -> list[str]:
        """The table that `prepare` prints."""
        head = (
            f"Linear baseline on raw pixels (PCA-{COMPONENTS} of {SIDE}×{SIDE}, logistic regression; "
            f"{self.train_count} train and {self.test_count} test images): mean AUC {self.mean:.3f}"
        )
        rows = [f"  {name:<28}{auc:.3f}  ({self.test_positives[name]} positive)" for name, auc in self.auc.items()]
        return [head, *rows]


def pixels(encoded: Iterable[bytes]) -> np.ndarray:
    """Encoded grey images -> float32 [N, SIDE * SIDE] in 0..1."""
    rows = []
    for data in encoded:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
        if image is None:
            raise ValueError("An image of the data set cannot be decoded; prepare the data set again.")
        rows.append(cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA).ravel())
    return np.asarray(rows, np.float32).reshape(-1, SIDE * SIDE) / 255


def linear_baseline(
    train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray, names: Sequence[str]
) -> Baseline:
    """Fits on `train`, scores on `test`.

    Args: train_x, test_x: float [N, SIDE * SIDE] from `pixels`. train_y, test_y: labels int [N, 14], where 1 counts as
      positive and everything else as negative. names: CheXpert names to score.
    """
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    components = min(COMPONENTS, *train_x.shape)
    reduce = PCA(components, whiten=True, svd_solver="randomized", random_state=0).fit(train_x)
    train_z, test_z = reduce.transform(train_x), reduce.transform(test_x)
    auc, positives = {}, {}
    for name in names:
        column = CHEXPERT_LABELS.index(name)
        train, test = train_y[:, column] == PRESENT, test_y[:, column] == PRESENT
        if len(set(train)) == len(set(test)) == 2:
            model = LogisticRegression(C=1.0, max_iter=300).fit(train_z, train)
            auc[name] = float(roc_auc_score(test, model.decision_function(test_z)))
            positives[name] = int(test.sum())
    return Baseline(auc, len(train_x), len(test_x), positives)
