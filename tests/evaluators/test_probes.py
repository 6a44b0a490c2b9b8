"""Linear probe and nearest neighbours on features whose answers are known."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from medvlp_jax.evaluators import knn, linear_probe
from medvlp_jax.evaluators.truth import Truth
from tests.evaluators import fake


def world(noise=0.3, pixels=True, **settings):
    rng = np.random.default_rng(0)
    splits = {}
    for split, count in (("train", 400), ("validation", 120), ("test", 150)):
        present = rng.random((count, 2)) < 0.4
        table = fake.labels(Edema=np.where(present[:, 0], 1, 0), Fracture=np.where(present[:, 1], 1, -2))
        pooled = np.concatenate([present + noise * rng.normal(size=(count, 2)), rng.normal(size=(count, 3))], axis=1)
        pooled[:, 4] = 7.0  # a feature without content
        splits[split] = fake.features(
            pooled=pooled, pixels=rng.normal(size=(count, 9)), labels=table, patient_hash=np.arange(count) // 2
        )
    settings = {"fractions": (1.0, 10.0, 100.0), "seeds": 3, "resamples": 60, **settings}
    return splits, fake.context(splits, baselines=pixels, **settings)


@pytest.mark.parametrize("module", [linear_probe, knn])
def test_reads_what_is_there_and_nothing_from_noise(module):
    _, context = world()
    result = module.run(context)
    found = fake.by_name(result)
    name = module.__name__.rpartition(".")[2]
    full = found[f"{name}/100%/auc/mean"]
    assert full.value > 0.95
    assert full.interval[0] < full.value < full.interval[1]
    assert full.seeds is None
    assert 0.35 < full.raw_pixels < 0.65  # pixels are noise here
    few = found[f"{name}/1%/auc/Edema"]
    assert few.seeds == 3
    assert few.interval is not None
    assert few.value < full.value + 0.05
    assert len(result.skipped) == 12
    assert set(result.files["probe_subsets.json"]["records"]) == {"1%", "10%"}
    assert [len(rows) for rows in result.files["probe_subsets.json"]["records"]["10%"]] == [40, 40, 40]


def test_without_baselines_there_are_no_pixels():
    _, context = world(pixels=False)
    assert all(score.raw_pixels is None for score in linear_probe.run(context).scores)


def test_without_labels_nothing_is_scored():
    splits, context = world()
    splits["train"].fields["labels"][:] = -2
    assert linear_probe.run(context).scores == []


def test_test_features_do_not_enter_the_standardisation():
    train, test = np.random.default_rng(1).normal(3, 2, (50, 4)), np.full((2, 4), 1e6)
    scaled, far = linear_probe.standardised([train, test])
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(scaled.std(axis=0), 1, atol=1e-5)
    assert far.min() > 1e5


@pytest.mark.parametrize("images", [30, 300])  # fewer and more than features
@pytest.mark.parametrize("newton_width", [0, 128])
def test_fits_equal_scikit_learn_on_the_features_themselves(images, newton_width, monkeypatch):
    monkeypatch.setattr(linear_probe, "NEWTON_WIDTH", newton_width)
    rng = np.random.default_rng(3)
    train, test = rng.normal(size=(images, 80)), rng.normal(size=(40, 80))
    present, keep = train[:, 0] + rng.normal(size=images) > 0, rng.random(images) < 0.9
    tried = linear_probe._fits(train, {"Edema": Truth(keep, present)})
    assert tuple(tried) == linear_probe.STRENGTHS
    for strength in (0.01, 0.1):  # a weaker penalty stops before the last digits
        model = LogisticRegression(C=strength, tol=1e-8, max_iter=5000).fit(train[keep], present[keep])
        np.testing.assert_allclose(tried[strength]["Edema"].scores(test), model.decision_function(test), atol=0.06)


def test_neighbours_equal_scikit_learn():
    rng = np.random.default_rng(2)
    train, test, present = rng.normal(size=(90, 6)), rng.normal(size=(30, 6)), rng.random(90) < 0.5
    keep = rng.random(90) < 0.8
    found = knn._scores_of_subset(train, {"Edema": Truth(keep, present)}, None, test)["Edema"]
    model = KNeighborsClassifier(
        knn.NEIGHBOURS, metric="cosine", weights=lambda distance: np.exp(-distance / knn.TEMPERATURE)
    ).fit(train[keep], present[keep])
    np.testing.assert_allclose(found, model.predict_proba(test)[:, 1], rtol=1e-4)
