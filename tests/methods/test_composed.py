"""Composed objectives: sums of the methods' own terms, what a term brings along, and what inputs do not allow."""

import jax
import numpy as np
import pytest

from configs import hierarchical_local
from medvlp_jax import build, methods
from medvlp_jax import step as steps
from medvlp_jax.losses.contrastive import contrastive
from medvlp_jax.losses.orthogonality import orthogonality_loss
from medvlp_jax.losses.sentence_region import sentence_region_terms, spatial_targets
from medvlp_jax.losses.word_region import word_region_loss
from medvlp_jax.methods import two_towers
from medvlp_jax.methods.terms import Embeddings, terms_of
from tests.methods.test_lovt import BERT, tokens
from tests.methods.test_two_towers import values

B, V, R, U, D = 6, 2, 6, 4, 5
PAIRS = {"temperature": 0.1, "image_to_text": 0.75, "text_to_image": 0.25, "duplicates": "mask"}
SENTENCES = {"temperature": 0.3, "threshold": 0.5, "beta": 1.0, "smoothing": "exponential"}
WORDS = {"attention": 4.0, "similarity": 5.0, "contrast": 10.0, "form": "double_softmax", "length_normalised": False}
TERMS = {
    "read": {"kind": "pairs", "weight": 0.5, "image": "levels", "text": "findings", **PAIRS},
    "diagnosis": {"kind": "sigmoid", "weight": 2.0, "image": "pooled", "text": "impression", "duplicates": "mask"},
    "local": {"kind": "sentences", "weight": 0.375, "text": "findings", **SENTENCES},
    "views": {"kind": "views", "weight": 0.25, "image": "levels", "temperature": 0.2},
    "latent": {"kind": "orthogonality", "weight": 0.1, "off_diagonal": 0.0051, "centre": False},
}
LOCAL_WORDS = {"kind": "words", "weight": 0.7, "text": "findings", "duplicates": "mask", **WORDS}


def config(terms=None, argument="demo", **fields):
    cfg = hierarchical_local.get_config(argument).unlock()
    cfg.image.size, cfg.image.views = 32, V
    cfg.model.trunk.widths, cfg.model.trunk.width, cfg.model.features = (4, 4, 8, 8), 4, 12
    cfg.text.max_length, cfg.text.max_sentences = 24, 4
    cfg.model.logits = {"temperature": 0.1, "bias": -10.0}
    if terms is not None:
        cfg.loss.terms = terms
    cfg.update_from_flattened_dict(fields)
    return cfg.lock()


def case():
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.normal(size=(B, *shape)).astype(np.float32)  # noqa: E731
    mask = np.arange(U) < np.asarray([4, 1, 0, 2, 3, 4])[:, None]
    e = Embeddings(
        image={"pooled": normal(V, D), "levels": normal(V, D)},
        text={"findings": normal(D), "impression": normal(D)},
        unit={"findings": normal(U, D)},
        mask={"findings": mask},
        region_seen={"findings": normal(V, R, D)},
        unit_seen={"findings": normal(V, U, D)},
        region_BxVxhxwxD=normal(V, 2, 3, D),
        latent_BxVxC=normal(V, 7),
        scale_B=np.full(B, 8.0, np.float32),
        bias_B=np.full(B, -3.0, np.float32),
    )
    batch = {
        "has_findings": np.asarray([1, 1, 1, 1, 1, 0], bool),
        "has_impression": np.asarray([1, 0, 1, 1, 1, 1], bool),
        "findings_hash": np.asarray([0, 1, 2, 0, 4, 5], np.int32),
        "impression_hash": np.arange(B, dtype=np.int32),
    }
    return e, batch


def test_the_sum_is_that_of_the_methods_own_terms():
    e, batch = case()
    cfg, words = config(TERMS), config({"read": TERMS["read"], "local": LOCAL_WORDS}, **{"text.units": "words"})
    words = words.unlock()
    words.text.sections = ("findings",)

    def both(e):
        return methods.get("composed").loss(e, batch, cfg, 0), methods.get("composed").loss(e, batch, words, 0)

    def own(e):
        views, found = range(V), {}
        real = batch["has_findings"] & e.mask["findings"].any(axis=1)
        unit, mask = e.unit["findings"], e.mask["findings"]
        region = e.region_BxVxhxwxD.reshape(B, V, R, D)
        shared = {"target_RxR": spatial_targets(2, 3), "temperature": 0.3, "valid_B": real}
        ones = np.ones((B, R), np.float32)
        found["local"] = [
            sum(
                sentence_region_terms(
                    region[:, v],
                    e.region_seen["findings"][:, v],
                    unit,
                    e.unit_seen["findings"][:, v],
                    mask,
                    ones,
                    mask.astype(np.float32),
                    **shared,
                )
            )
            for v in views
        ]
        twins = {"targets": two_towers.pair_targets(batch["findings_hash"], "mask")}
        found["words"] = [word_region_loss(region[:, v], unit, mask, **WORDS, **twins, valid_B=real) for v in views]
        rule = {"temperature": 0.1, "directions": (0.75, 0.25), **twins, "valid_N": batch["has_findings"]}
        found["read"] = [contrastive(e.image["levels"][:, v], e.text["findings"], **rule) for v in views]
        rule = {"temperature": 1 / 8, "bias": -3.0, "kind": "sigmoid", "valid_N": batch["has_impression"]}
        found["diagnosis"] = [contrastive(e.image["pooled"][:, v], e.text["impression"], **rule) for v in views]
        found["views"] = [contrastive(e.image["levels"][:, 0], e.image["levels"][:, 1], temperature=0.2)]
        found["latent"] = [orthogonality_loss(e.latent_BxVxC[:, v]) for v in views]
        return {name: sum(values) / len(values) for name, values in found.items()}

    (total, found), (words_total, words_found) = jax.jit(both)(e)
    expected = jax.jit(own)(e)
    for name in TERMS:
        assert float(found[name]) == pytest.approx(float(expected[name]), rel=1e-5), name
    assert float(words_found["local"]) == pytest.approx(float(expected["words"]), rel=1e-5)
    assert float(total) == pytest.approx(sum(TERMS[n]["weight"] * float(expected[n]) for n in TERMS), rel=1e-5)
    parts = 0.5 * float(expected["read"]) + 0.7 * float(expected["words"])
    assert float(words_total) == pytest.approx(parts, rel=1e-5)
    assert (float(found["scale"]), float(found["bias"])) == (8.0, -3.0)


def shapes_of(cfg):
    model = methods.get("composed").build(cfg, BERT)
    batch = build.batch_shapes(cfg, BERT.hidden_size)
    return jax.eval_shape(lambda: steps.init_variables(model, batch, 0))["params"]


def test_a_term_brings_what_it_needs_and_no_more():
    towers = {"trunk", "text_tower"}
    hierarchy = towers | {"image_head", "read", "text_head"}
    assert set(shapes_of(config(**{"loss.terms.local.weight": 0.0}))) == hierarchy
    assert set(shapes_of(config())) == hierarchy | {"region_head", "unit_head", "cross_attention"}
    pooled = {**TERMS["diagnosis"], "text": "findings"}
    words = config({"pairs": pooled, "local": LOCAL_WORDS}, **{"text.units": "words"}).unlock()
    words.text.sections = ("findings",)
    assert set(shapes_of(words)) == towers | {"image_head", "text_head", "region_head", "unit_head", "logits"}
    frozen = config(**{"loss.terms.local.weight": 0.0, "text.trained": False, "text.units": ""})
    assert set(shapes_of(frozen)) == hierarchy - {"text_tower"}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"text.units": "words"}, r"loss.terms.local \(sentences\) is missing sentences: text.units='words'"),
        ({"text.trained": False}, r"loss.terms.local \(sentences\) is missing sentences: a frozen tower"),
        ({"text.max_sentences": 0}, "missing sentences as they were written, so many at most"),
        ({"text.sections": ("findings",)}, r"loss.terms.diagnosis \(pairs\) is missing the text 'impression'"),
        ({"text.sections": ("findings", "impression", "report")}, "text.sections names report, which no term reads"),
        (
            {"loss.terms.read.image": "middle"},
            "loss.terms.read.image='middle' is unknown. Choose one of pooled, levels",
        ),
        ({"loss.terms.read.kind": "pears"}, "loss.terms.read.kind='pears' is unknown. Choose one of pairs, sigmoid"),
        ({"loss.terms.local.kind": "words"}, "loss.terms.local is missing 'attention'"),
        ({"loss.terms.diagnosis.text": "findings"}, "a text is compared with one vector of the image"),
        ({"loss.terms.read.weight": 0.0, "loss.terms.diagnosis.weight": 0.0}, "missing a vector of image and text"),
        ({f"loss.terms.{name}.weight": 0.0 for name in ("read", "diagnosis", "local")}, "nothing to learn from"),
    ],
)
def test_what_inputs_do_not_allow_is_named(fields, words):
    with pytest.raises(ValueError, match=words):
        terms_of(config(**fields))


def test_terms_that_need_more_of_the_model():
    with pytest.raises(ValueError, match=r"loss.terms.views \(views\) is missing a second view: image.views=1"):
        terms_of(config(TERMS, **{"image.views": 1}))
    two_stages = {"stage_sizes": (1, 1), "widths": (4, 4), "strides": (1, 2)}
    with pytest.raises(ValueError, match=r"missing local level stage3. This trunk has stage1, stage2. Use a ResNet"):
        shapes_of(config(**{f"model.trunk.{name}": value for name, value in two_stages.items()}))
    cfg = config(TERMS).unlock()
    del cfg.model["logits"]
    with pytest.raises(ValueError, match=r"loss.terms.diagnosis \(sigmoid\) is missing model.logits"):
        terms_of(cfg)


def test_a_step_with_missing_texts_is_finite_and_evaluation_sees_the_same_vectors():
    cfg = config(TERMS)
    reports = tokens([3, 0, 2, 4])
    batch = {"image": np.repeat(reports["image"], V, axis=1)}
    for section, order in (("findings", [0, 1, 2, 3]), ("impression", [1, 2, 3, 0])):
        batch |= {name.replace("report", section): x[order] for name, x in reports.items() if "report" in name}
    model = methods.get("composed").build(cfg, BERT)
    variables = values(jax.eval_shape(lambda: steps.init_variables(model, batch, 0)))

    def total(params):
        e, _ = model.apply(
            {**variables, "params": params},
            batch,
            train=True,
            rngs={"channels": jax.random.key(0)},
            mutable=["batch_stats"],
        )
        return methods.get("composed").loss(e, batch, cfg, 0)

    (value, terms), gradients = jax.jit(jax.value_and_grad(total, has_aux=True))(variables["params"])
    assert np.isfinite(float(value))
    assert set(terms) == {*TERMS, "scale", "bias"}
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(gradients))
    assert all(np.any(np.asarray(g) != 0) for g in jax.tree.leaves(gradients["cross_attention"]))

    def evaluate(variables, batch):
        image = model.apply(variables, batch["image"], method="embed_image")
        text = model.apply(variables, batch, method="embed_text")
        return image.aligned, image.regions, text.aligned, model.apply(variables, batch, train=False)

    image, regions, text, e = jax.jit(evaluate)(variables, batch)
    assert set(regions) == {"impression"}
    for section, vector in (("findings", "levels"), ("impression", "pooled")):
        np.testing.assert_allclose(image[section], e.image[vector], atol=1e-5)
        np.testing.assert_allclose(text[section], e.text[section], atol=1e-5)
    np.testing.assert_allclose(np.asarray(regions["impression"]).mean(axis=(2, 3)), image["impression"], atol=1e-4)
