"""Weighted means of loss terms, and evaluators by name."""

import pytest

from medvlp_jax import evaluators
from tests.evaluators import fake


def context(*batches):
    return fake.context({}, terms=batches)


def test_batches_weigh_by_their_examples():
    batches = (({"loss": 2.0, "text": 1.0}, 8), ({"loss": 5.0, "text": 4.0}, 4), ({"loss": 9.0, "text": 0.0}, 1))
    scores = fake.values(evaluators.get("validation_loss")(context(*batches)))
    assert scores == pytest.approx({"loss": (16 + 20 + 9) / 13, "loss/text": (8 + 16) / 13})


def test_one_batch_is_its_own_mean():
    scores = fake.values(evaluators.get("validation_loss")(context(({"loss": 0.25, "view_terms": 3.0}, 5))))
    assert scores == {"loss": 0.25, "loss/view_terms": 3.0}


def test_no_batch_gives_no_score():
    assert evaluators.get("validation_loss")(context()).scores == []


def test_unknown_evaluator_lists_the_known_ones():
    with pytest.raises(ValueError, match="Unknown evaluator 'recall'") as info:
        evaluators.get("recall")
    assert all(name in str(info.value) for name in ("retrieval", "validation_loss"))
    assert set(evaluators.EVALUATORS) >= {"retrieval", "validation_loss"}
