"""Zero-shot scores from vectors whose answers are known."""

import json

import numpy as np
import pytest
from sklearn import metrics

from medvlp_jax.data.labels import CHEXPERT_LABELS
from medvlp_jax.evaluators import prompts, zero_shot
from tests.evaluators import fake

NAMES = ("Edema", "Pneumothorax", "Fracture")


def axis_of(text):
    """A text's vector: plus or minus the axis of its finding."""
    found = {
        name: word for name, word in zip(NAMES, ("edema", "pneumothorax", "fracture"), strict=True) if word in text
    }
    vector = np.zeros(4)
    for name in found:
        vector[NAMES.index(name)] = -1.0 if text.startswith("no") else 1.0
    vector[3] = 0.1
    return vector


def world(count=80, noise=0.5, seed=0, **settings):
    rng = np.random.default_rng(seed)
    splits = {}
    for split in ("test", "validation"):
        present = rng.random((count, 3)) < 0.4
        table = fake.labels(**{name: np.where(present[:, i], 1, 0) for i, name in enumerate(NAMES)})
        image = np.concatenate([2.0 * present - 1, np.zeros((count, 1))], axis=1) + noise * rng.normal(size=(count, 4))
        splits[split] = fake.features({"findings": image, "impression": -image}, labels=table)
    settings = {"prompts": "plain", "section": "findings", "resamples": 60, **settings}
    return splits, fake.context(splits, texts=axis_of, **settings)


def test_auc_f1_and_mcc_equal_scikit_learn():
    splits, context = world()
    result = zero_shot.run(context)
    found = fake.by_name(result)
    areas = []
    for i, name in enumerate(NAMES):
        unit = {
            s: f.image["findings"] / np.linalg.norm(f.image["findings"], axis=1)[:, None] for s, f in splits.items()
        }
        truth = {s: f.fields["labels"][:, CHEXPERT_LABELS.index(name)] == 1 for s, f in splits.items()}
        score = {s: 1 / (1 + np.exp(-2 * x[:, i] / np.sqrt(1.01))) for s, x in unit.items()}
        areas.append(metrics.roc_auc_score(truth["test"], score["test"]))
        assert found[f"zero_shot/auc/{name}"].value == pytest.approx(areas[-1], abs=1e-9)
        best = max(
            np.unique(score["validation"]),
            key=lambda t: metrics.matthews_corrcoef(truth["validation"], score["validation"] >= t),
        )
        predicted = score["test"] >= best
        assert found[f"zero_shot/f1/{name}"].value == pytest.approx(metrics.f1_score(truth["test"], predicted))
        mcc = metrics.matthews_corrcoef(truth["test"], predicted)
        assert found[f"zero_shot/mcc/{name}"].value == pytest.approx(mcc)
        assert found[f"zero_shot/mcc_test_threshold/{name}"].value >= mcc - 1e-9
    mean = found["zero_shot/auc/mean"]
    assert mean.value == pytest.approx(np.mean(areas))
    assert mean.interval[0] < mean.value < mean.interval[1]
    assert (mean.chance, mean.count) == (0.5, 80)
    assert found["zero_shot/mcc/mean"].variant == "corrected"
    assert found["zero_shot/mcc_test_threshold/mean"].variant == "as_published"
    assert len(result.skipped) == 11
    assert "CheXzero" in result.protocol


def test_the_other_section_points_the_other_way():
    _, context = world(section="impression")
    assert fake.values(zero_shot.run(context))["zero_shot/auc/mean"] < 0.2


def test_unknown_section():
    _, context = world(section="history")
    with pytest.raises(
        ValueError, match=r"evaluation\.section='history' is unknown. Choose one of findings, impression"
    ):
        zero_shot.run(context)


def test_uncertain_images_are_dropped_and_counted():
    splits, context = world()
    table = splits["test"].fields["labels"]
    table[:10, CHEXPERT_LABELS.index("Edema")] = -1
    found = fake.by_name(zero_shot.run(context))
    assert found["zero_shot/auc/Edema"].count == 70
    assert found["zero_shot/auc/Fracture"].count == 80


def test_without_labels_nothing_is_scored_and_it_is_said():
    splits, context = world()
    splits["test"].fields["labels"][:] = -2
    result = zero_shot.run(context)
    assert result.scores == []
    assert len(result.skipped) == 14


def test_multiclass_with_and_without_column_scores():
    splits, context = world(noise=0.05)
    features = splits["test"]
    single = (features.fields["labels"] == 1).sum(axis=1) == 1
    found = fake.by_name(zero_shot.run(context))
    assert found["zero_shot/multiclass/accuracy"].count == single.sum()
    assert found["zero_shot/multiclass/accuracy"].value > 0.95
    # A constant added to one class's cosines changes the plain argmax, never the standardised one.
    features.image["findings"][:, 0] += 40.0
    shifted = fake.by_name(zero_shot.run(context))
    assert shifted["zero_shot/multiclass/accuracy"].value < 0.6
    assert shifted["zero_shot/multiclass_z/accuracy"].variant == "as_published"


def test_prompts_by_name_and_from_a_file(tmp_path):
    plain, ensemble = prompts.load("plain"), prompts.load("ensemble")
    assert set(plain) == set(ensemble) == set(CHEXPERT_LABELS)
    assert plain["Edema"] == (("pulmonary edema",), ("no pulmonary edema",))
    assert not any(text.lower().startswith("no no") for pair in ensemble.values() for side in pair for text in side)
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"effusion": {"positive": ["fluid"], "negative": ["dry", "no fluid"]}}))
    assert prompts.load(path) == {"Pleural Effusion": (("fluid",), ("dry", "no fluid"))}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"Oedema": {"positive": ["a"], "negative": ["b"]}}', r"Unknown label 'Oedema'. Known labels: No Finding"),
        ('{"Edema": {"positive": ["a"]}}', r"'Edema' needs a list of texts under 'negative'"),
        ('{"Edema": {"positive": ["a"], "negative": [" "]}}', r"'Edema' needs a list of texts under 'negative'"),
        ("[]", "must hold an object"),
        ("{", "is not valid JSON"),
    ],
)
def test_bad_prompt_files(tmp_path, content, message):
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        prompts.load(path)


def test_missing_prompt_file():
    with pytest.raises(FileNotFoundError, match=r"No prompt file mine\.json. Choose plain, ensemble"):
        prompts.load("mine.json")


def test_own_protocol_of_a_method_with_local_scores():
    splits, _ = world()
    image = splits["test"].image["findings"]
    asked = []

    def local(split, texts):
        asked.extend(texts)
        return 2.0 * image @ np.stack([axis_of(text.lower()) for text in texts]).T

    context = fake.context(
        splits, texts=lambda text: axis_of(text.lower()), local=local, section="findings", resamples=20
    )
    found = fake.by_name(zero_shot.run(context))
    pairs = prompts.builtin()
    assert len(asked) == len(set(asked)) <= 5 * len(pairs)
    assert set(asked) <= {text for pair in pairs.values() for text in pair.positive}
    labels, classes = splits["test"].fields["labels"], {}
    unit = image / np.linalg.norm(image, axis=1, keepdims=True)
    for name, some in prompts.drawn(pairs, 5, 6).items():
        vector = np.stack([axis_of(text.lower()) for text in some])
        cosine = unit @ (vector / np.linalg.norm(vector, axis=1, keepdims=True)).T
        classes[name] = ((cosine + 2.0 * image @ vector.T) / 2).max(axis=1)
        if name in NAMES:
            truth = labels[:, CHEXPERT_LABELS.index(name)] == 1
            assert found[f"zero_shot/own/auc/{name}"].value == pytest.approx(
                metrics.roc_auc_score(truth, classes[name])
            )
    assert found["zero_shot/own/multiclass_z/accuracy"].variant == "as_published"
    assert found["zero_shot/own/multiclass_z/accuracy"].count == found["zero_shot/multiclass/accuracy"].count
    assert "GLoRIA" in zero_shot.run(context).protocol
    assert not any("/own/" in name for name in fake.by_name(zero_shot.run(world()[1])))
