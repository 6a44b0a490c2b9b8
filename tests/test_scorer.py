"""What the scorer gives to the evaluators."""

from types import SimpleNamespace

import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from medvlp_jax.scorer import Scorer


@pytest.mark.parametrize(("most", "batches"), [(0, 5), (1, 1), (4, 2), (5, 3), (100, 5)])
def test_the_loss_is_taken_of_the_first_batches_that_hold_enough_examples(most, batches):
    config = ConfigDict({"batch_size": 2, "evaluation": {"max_loss": most}})
    scorer, read = object.__new__(Scorer), []
    scorer.parts = SimpleNamespace(config=config, train=[None] * 10, augment=None, frozen={})
    scorer._batches = lambda split, preprocess_fn: (read.append(i) or {"i": i} for i in range(5))
    scorer._terms = lambda variables, frozen, batch, epoch: ({"loss": jnp.float32(batch["i"])}, 2)
    found = list(scorer._loss_terms({"step": jnp.int32(15)}, {}, "validation"))
    assert found == [({"loss": float(i)}, 2) for i in range(batches)]
    assert len(read) == batches
