"""MGCA: hand-worked losses, words and their weights, prototypes over a run, who takes part, and what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict

from configs import mgca as mgca_config
from medvlp_jax import build, methods, optim
from medvlp_jax import step as steps
from medvlp_jax.encoders.bert import Bert, BertConfig
from medvlp_jax.losses.contrastive import contrastive
from medvlp_jax.losses.prototypes import prototype_loss
from medvlp_jax.losses.token_alignment import attention_weights, token_alignment_loss
from medvlp_jax.methods import towers
from medvlp_jax.methods.mgca import Embeddings
from tests.methods.test_gloria import LENGTH, SMALL, tokens
from tests.methods.test_two_towers import batch_of, values

BERT = tiny.bert_config()
METHOD = methods.get("mgca")


def get(argument="", **fields) -> ConfigDict:
    config = mgca_config.get_config(argument).unlock()
    config.update_from_flattened_dict(fields)
    return config.lock()


def embeddings_of(size, patches=6, words=5, width=8, count=7, seed=0):
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    mask = np.arange(words) < rng.integers(1, words + 1, size)[:, None]
    sides = normal(size, 1, width), normal(size, width), normal(size, 1, patches, width), normal(size, words, width)
    weight = np.asarray(attention_weights(jnp.abs(normal(size, words)) * mask))
    prototypes = np.broadcast_to(normal(1, count, width), (size, count, width))
    return Embeddings(*sides, mask, weight, prototypes)


@functools.cache
def compiled(argument, fields, epoch):
    config = get(argument, **dict(fields))
    return jax.jit(lambda e, b: METHOD.loss(e, b, config, epoch))


def loss_of(embeddings, batch=None, argument="", epoch=1, **fields):
    batch = batch_of(len(embeddings.text_BxD)) if batch is None else batch
    fields = tuple((f"loss.{name.replace('__', '.')}", value) for name, value in fields.items())
    return compiled(argument, fields, epoch)(embeddings, batch)


# ---- losses -----------------------------------------------------------------------------


def test_released_loss_of_plain_arrays_when_nothing_is_learnt():
    ones = lambda *shape: np.ones((72, *shape), np.float32)  # noqa: E731
    mask = np.arange(111) < np.random.default_rng(0).integers(3, 112, 72)[:, None]
    weight = np.asarray(attention_weights(jnp.asarray(mask, jnp.float32)))
    e = Embeddings(ones(1, 4), ones(4), ones(1, 361, 4), ones(111, 4), mask, weight, ones(500, 4))
    value, terms = loss_of(e, argument="preset=released")
    expected = {"pairs": 8.55333, "words": 4.70953, "patches": 5.88888, "prototypes": 6.21461}
    assert {name: float(x) for name, x in terms.items()} == pytest.approx(expected, rel=1e-5)
    assert float(value) == pytest.approx(sum(expected.values()), rel=1e-5)


def test_loss_is_its_terms_and_blind_to_the_order_of_samples():
    e = embeddings_of(8)
    value, terms = loss_of(e, weights__tokens=0.7, weights__prototypes=0.5)

    @jax.jit
    def formulas(e):
        words, patches = token_alignment_loss(e.word_BxWxD, e.region_BxVxPxD[:, 0], e.mask_BxW, e.weight_BxW)
        pairs = contrastive(e.image_BxVxD[:, 0], e.text_BxD, temperature=0.07)
        shared = prototype_loss(e.image_BxVxD[:, 0], e.text_BxD, e.prototype_BxKxD[0])
        return {"pairs": pairs, "words": words, "patches": patches, "prototypes": shared}

    expected = {name: float(x) for name, x in formulas(e).items()}
    assert {name: float(x) for name, x in terms.items()} == pytest.approx(expected, rel=1e-5)
    tokens_term = expected["words"] + expected["patches"]
    assert float(value) == pytest.approx(expected["pairs"] + 0.7 * tokens_term + 0.5 * expected["prototypes"], rel=1e-5)
    turned = jax.tree.map(lambda x: np.roll(x, 3, axis=0), e)
    assert float(loss_of(turned, weights__tokens=0.7, weights__prototypes=0.5)[0]) == pytest.approx(
        float(value), rel=1e-5
    )


def test_padding_and_texts_without_words_take_no_part():
    e, has, real = embeddings_of(8), np.arange(8) != 5, np.arange(8) < 7
    mask = e.mask_BxW.copy()
    mask[2] = False
    e = e.replace(mask_BxW=mask)
    batch = {**batch_of(8, has), "_mask": real}
    terms = loss_of(e, batch)[1]
    for names, rows in ((("words", "patches"), [2, 5, 7]), (("pairs", "prototypes"), [5, 7])):
        out = np.isin(np.arange(8), rows)
        spoilt = jax.tree.map(lambda x, out=out: np.where(out.reshape(-1, *[1] * (x.ndim - 1)), 0 * x, x), e)
        spoilt = loss_of(spoilt.replace(prototype_BxKxD=e.prototype_BxKxD), batch)[1]
        for name in names:
            assert float(spoilt[name]) == pytest.approx(float(terms[name]), rel=1e-6), name
    everything = loss_of(e, {**batch, "_mask": np.ones(8, bool)})[1]
    assert all(abs(float(everything[name]) - float(terms[name])) > 1e-5 for name in terms)
    nothing = loss_of(e.replace(mask_BxW=0 * mask > 0), {**batch, "has_report": np.zeros(8, bool)})
    assert float(nothing[0]) == 0.0


# ---- towers -----------------------------------------------------------------------------


def _sizes(argument):
    return (
        {**{n: x for n, x in SMALL.items() if "trunk" not in n}, "model.trunk.image": 32}
        if "vit" in argument
        else SMALL
    )


def made(argument="demo", **fields):
    config = get(argument, **{**_sizes(argument), "model.prototypes": 5, "model.features": 12, **fields})
    model = METHOD.build(config, BERT)
    shapes = jax.eval_shape(lambda: steps.init_variables(model, build.batch_shapes(config, 16), 0))
    return config, model, values(shapes)


def test_words_and_their_weights_in_both_presets():
    batch, found, statistics = tokens(), {}, {}
    for preset in ("fixed", "released"):
        _, model, variables = made(f"demo,preset={preset}", **{"model.bn.scope": "global"})
        train = jax.jit(lambda v, model=model: model.apply(v, batch, train=True, mutable=["batch_stats"]))
        found[preset], updated = train(variables)
        statistics[preset] = updated["batch_stats"]["word_head"]["norm1"]["mean"]
    tower = {"params": variables["params"]["text_tower"]}
    output = jax.jit(Bert(BERT).apply)(tower, batch["report_ids"], batch["report_mask"])
    paid = np.asarray(output.attention)[:, :, 0].mean(axis=1)
    segment = np.where(batch["report_mask"], batch["report_segment"], -1)
    for row in range(4):
        count = segment[row].max()  # words and [SEP]
        own = np.asarray([paid[row, segment[row] == word].sum() for word in range(1, count + 1)])
        next_piece = np.append(paid[row, 1:], 0.0)
        following = np.asarray([next_piece[segment[row] == word].sum() for word in range(1, count + 1)])
        for preset, attention in (("fixed", own), ("released", following)):
            if (preset, row) == ("released", 1):  # fills all positions: [SEP] and the last word are lost
                attention = following[:-2]
            weight = np.asarray(found[preset].weight_BxW)[row]
            expected = np.asarray(attention_weights(jnp.asarray(attention)[None]))[0]
            np.testing.assert_allclose(weight[: len(attention)], expected, atol=1e-5)
            assert np.all(weight[len(attention) :] == 0)
            assert found[preset].mask_BxW[row].sum() == len(attention)
    assert found["fixed"].word_BxWxD.shape == (4, LENGTH - 1, 12)
    np.testing.assert_allclose(found["fixed"].weight_BxW.sum(axis=1), 1.0, rtol=1e-5)
    # Padding is no evidence for the statistics of the head; as released it is, with what its bias makes of nothing.
    word = np.stack(
        [[(segment == w) @ last for w in range(1, LENGTH)] for segment, last in zip(segment, output.last, strict=True)]
    )
    head, old = (variables[part]["word_head"] for part in ("params", "batch_stats"))
    hidden = word @ head["linear1"]["kernel"] + head["linear1"]["bias"]
    kept = 0.9 * old["norm1"]["mean"]
    mask = np.asarray(found["fixed"].mask_BxW)
    np.testing.assert_allclose(statistics["fixed"], kept + 0.1 * hidden[mask].mean(axis=0), atol=1e-4)
    lost = np.arange(LENGTH - 1) >= np.asarray(found["released"].mask_BxW).sum(axis=1)[:, None]
    hidden = np.where(lost[..., None], np.asarray(head["linear1"]["bias"]), hidden)
    np.testing.assert_allclose(statistics["released"], kept + 0.1 * hidden.mean(axis=(0, 1)), atol=1e-4)


def test_patches_of_a_vit_weigh_what_its_class_token_pays_them():
    config, model, variables = made("demo,preset=vit", **{"image.size": 32})
    assert "attention" in config.model.trunk
    batch = tokens()
    e = jax.jit(lambda v: model.apply(v, batch, train=False))(variables)
    assert e.region_BxVxPxD.shape == (4, 1, 4, 12)
    image = jax.jit(lambda v: model.apply(v, batch["image"], method="embed_image"))(variables)
    assert image.regions["report"].shape == (4, 1, 2, 2, 12)
    np.testing.assert_allclose(image.regions["report"].mean(axis=(2, 3)), image.aligned["report"], atol=1e-5)
    assert np.ptp(np.asarray(image.regions["report"]), axis=(2, 3)).max() > 0.01
    trunk = model.bind(variables).trunk.clone(parent=None, name=None)
    levels = jax.jit(trunk.apply)({"params": variables["params"]["trunk"]}, towers.pixels(batch["image"], config.image))
    np.testing.assert_allclose(image.pooled_BxVxC[:, 0], levels["cls"], atol=1e-4)
    paid = np.asarray(levels["attention"])
    np.testing.assert_allclose(paid.sum(axis=-1), 1.0, rtol=1e-5)
    expected = attention_weights(jnp.asarray(paid[:, :, 0, 1:].mean(axis=1)))
    np.testing.assert_allclose(e.patch_weight_BxVxP[:, 0], expected, atol=1e-5)
    patches = jax.jit(lambda e: METHOD.loss(e, batch, config, 0)[1]["patches"])
    assert abs(float(patches(e)) - float(patches(e.replace(patch_weight_BxVxP=None)))) > 1e-4


def test_a_step_keeps_prototypes_at_length_one():
    config, model, variables = made(**{"optimizer.warmup_steps": 0, "optimizer.rates": ()})
    tx = optim.optimizer(config.optimizer, 10)
    batch = tokens()
    # An epoch of one step: prototypes are held in the first step and learn in the second.
    step = jax.jit(
        steps.make_train_step(model, METHOD, tx, config.copy_and_resolve_references(), examples=config.batch_size)
    )
    states = [jax.jit(lambda v: steps.start_state(v, tx, 0))(variables)]
    for _ in range(2):
        state, metrics = step(states[-1], {}, batch)
        assert all(np.isfinite(float(x)) for x in metrics.values()), metrics
        states.append(state)
    unit = [np.asarray(s["params"]["prototypes"]) for s in states]
    for prototypes in unit[1:]:
        np.testing.assert_allclose(np.linalg.norm(prototypes, axis=1), 1.0, rtol=1e-5)
    first = unit[0] / np.linalg.norm(unit[0], axis=1, keepdims=True)
    np.testing.assert_allclose(unit[1], first, atol=1e-5)  # decay alone, which normalisation takes back
    assert np.abs(unit[2] - first).max() > 1e-4
    moved = jax.tree.map(
        lambda a, b: bool(np.any(np.asarray(a) != np.asarray(b))), states[0]["params"], state["params"]
    )
    assert {name for name, tree in moved.items() if any(jax.tree.leaves(tree))} == set(state["params"])


def test_sizes_of_the_full_recipe():
    config = get()
    model = METHOD.build(config, BertConfig(vocab_size=28996, num_hidden_layers=6))
    variables = jax.eval_shape(lambda: steps.init_variables(model, build.batch_shapes(config, 768), 0))
    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))  # noqa: E731
    assert {name: count(tree) for name, tree in variables["params"].items()} == {
        "trunk": 23_508_032,
        "image_head": 4_462_720,
        "region_head": 2_365_568,
        "text_head": 1_841_280,
        "word_head": 1_841_280,
        "prototypes": 64_000,
        "text_tower": 65_192_448,
    }


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model.local.level": "stage5"}, "missing local level. This trunk has stage1, stage2, stage3, stage4"),
        ({"model.prototypes": 0}, "MGCA needs at least one"),
        ({"text.trained": False}, "mgca reads words from a text tower that is trained"),
    ],
)
def test_what_it_refuses(fields, words):
    with pytest.raises(ValueError, match=words):
        made(**fields)
