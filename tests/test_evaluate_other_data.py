"""Scoring another data set than the run's own: splits that it lacks, patients that the run has seen."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict

from medvlp_jax import evaluate
from medvlp_jax.data import record_ids
from medvlp_jax.scorer import Scorer


def config(test_only, monkeypatch):
    there = ["test"] if test_only else ["train", "test"]
    monkeypatch.setattr(evaluate, "prepared_splits", lambda data_dir, name: there)
    fields = {"dir": os.curdir, "name": "ms_cxr", "train_split": "train[:50%]", "eval_split": "validation"}
    every = ("zero_shot", "linear_probe", "knn", "grounding")
    return ConfigDict({"data": {**fields, "test_split": "test"}, "final_evaluators": every})


def test_a_set_for_evaluation_alone(monkeypatch):
    asked = config(True, monkeypatch)
    (note,) = evaluate.fit_splits(asked)
    assert note.endswith("ms_cxr has no training split: thresholds are chosen on test; left out: linear_probe, knn")
    assert asked.final_evaluators == ("zero_shot", "grounding")
    assert asked.data.train_split == asked.data.eval_split == "test"
    assert set(evaluate.LEARNING) < set(config(True, monkeypatch).final_evaluators)


def test_a_set_without_validation(monkeypatch):
    asked = config(False, monkeypatch)
    (note,) = evaluate.fit_splits(asked)
    assert "no validation split" in note
    assert (asked.data.train_split, asked.data.eval_split) == ("train[:50%]", "train[:50%]")
    assert len(asked.final_evaluators) == 4


def source(name, split, patients):
    return SimpleNamespace(name=name, split=split, patients=patients)


def scorer(trained_on, own, train_split, *, other="ms_cxr", allow=False):
    evaluation = SimpleNamespace(data=other, allow_patient_overlap=allow)
    settings = SimpleNamespace(evaluation=evaluation, data=SimpleNamespace(train_split=train_split))
    scored = source("ms_cxr", "test", [1, 2, 3])
    parts = SimpleNamespace(config=settings, train=own or scored, source=lambda split: scored)
    return SimpleNamespace(parts=parts, trained_on=trained_on)


def test_patients_of_training_are_looked_for_in_the_other_set(monkeypatch):
    monkeypatch.setattr(record_ids, "record_ids", lambda source: {"patient_id": np.array(source.patients)})
    clean, seen = source("mimic_cxr", "train", [7, 8]), source("mimic_cxr", "train", [2, 3, 8])
    assert Scorer.check_patients(scorer(clean, None, "test"), "test") == 0
    with pytest.raises(
        ValueError, match=r"2 patients .* 'ms_cxr' are also in the training split 'train' of 'mimic_cxr'"
    ):
        Scorer.check_patients(scorer(seen, None, "test"), "test")
    assert Scorer.check_patients(scorer(seen, None, "test", allow=True), "test") == 2
    own = source("ms_cxr", "train", [3])
    with pytest.raises(ValueError, match="1 patients"):  # its own training split counts as well
        Scorer.check_patients(scorer(clean, own, "train"), "test")
    with pytest.raises(ValueError, match="3 patients"):  # a run scored on its own training split
        Scorer.check_patients(scorer(None, None, "test", other=""), "test")
