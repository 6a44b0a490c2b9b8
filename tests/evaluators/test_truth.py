"""Which images can judge which finding, and the one class of an image."""

import numpy as np
import pytest

from medvlp_jax.data.labels import CHEXPERT_LABELS
from medvlp_jax.evaluators import truth
from medvlp_jax.evaluators.subsets import patient_subset
from tests.evaluators import fake


@pytest.mark.parametrize(
    ("policy", "keep", "present"),
    [
        ("drop", [1, 1, 0, 1], [1, 0, None, 0]),
        ("positive", [1, 1, 1, 1], [1, 0, 1, 0]),
        ("negative", [1, 1, 1, 1], [1, 0, 0, 0]),
    ],
)
def test_uncertain_policies(policy, keep, present):
    found = truth.truth_of(fake.labels(Edema=[1, 0, -1, -2]), "Edema", policy)
    assert found.keep_N.tolist() == [bool(k) for k in keep]
    assert [bool(t) for t, k in zip(found.truth_N, keep, strict=True) if k] == [
        bool(p) for p in present if p is not None
    ]


def test_unknown_policy():
    with pytest.raises(ValueError, match=r"evaluation\.uncertain='ignore': choose one of drop, positive, negative"):
        truth.truth_of(fake.labels(Edema=[1, 0]), "Edema", "ignore")


def test_findings_with_one_class_are_skipped_with_the_reason():
    skipped = {}
    table = fake.labels(Edema=[1, 0, 1], Pneumothorax=[1, 1, 1], Fracture=[-1, -1, -1])
    assert list(truth.judged([table], "drop", skipped)) == ["Edema"]
    assert skipped["Pneumothorax"] == "every image has it"
    assert skipped["Fracture"] == "no image to judge"
    assert skipped["Cardiomegaly"] == "every image lacks it"
    assert len(skipped) == 13
    assert list(truth.judged([table, table[:1]], "drop", {})) == []


def test_single_class():
    table = fake.labels(
        No_Finding=[1, -2, -2, -2, -2, -2],
        Edema=[-2, 1, 1, 1, -2, 0],
        Pneumonia=[-2, -2, 1, -2, -2, -2],
        Lung_Opacity=[-2, 1, 1, 1, -2, 1],
        Fracture=[-2, -2, -2, -1, -2, -2],
    )
    names = ["No Finding", "Edema"]
    assert truth.single_class(table).tolist() == [*map(CHEXPERT_LABELS.index, names), -1, -1, -1, -1]


def test_subsets_hold_whole_patients_and_every_finding():
    rng = np.random.default_rng(0)
    patient = rng.integers(0, 400, 900)
    rare = np.zeros(900, bool)
    rare[patient == patient[7]] = True
    truths = {"Edema": (np.ones(900, bool), rare), "Fracture": (np.ones(900, bool), rng.random(900) < 0.5)}
    drawn = [patient_subset(patient, truths, 1.0, seed) for seed in range(5)]
    for rows in drawn:
        chosen = set(patient[rows])
        assert set(np.flatnonzero(np.isin(patient, list(chosen)))) == set(rows)
        assert 4 <= len(chosen) <= 8
        assert rare[rows].any()
    assert len({tuple(rows) for rows in drawn}) == 5
    np.testing.assert_array_equal(drawn[2], patient_subset(patient, truths, 1.0, 2))
    assert len(patient_subset(patient, truths, 100, 0)) == 900
    with pytest.raises(ValueError, match="holds 0"):
        patient_subset(patient, truths, 0, 0)
