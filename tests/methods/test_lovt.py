"""LoVT: golden facts, the whole loss in float64, padding and missing texts, both presets, parameters of the paper."""

import functools

import jax
import numpy as np
import pytest
import tiny

from configs import lovt as lovt_config
from medvlp_jax import build, methods
from medvlp_jax import step as steps
from medvlp_jax.losses.sentence_region import spatial_targets
from medvlp_jax.methods.lovt import Embeddings
from tests.losses import slopes
from tests.methods.test_two_towers import values

BERT = tiny.bert_config(max_position_embeddings=32)
PARTS = ("region_to_seen", "seen_to_region", "sentence_to_seen", "seen_to_sentence")


def config(argument="", **loss):
    cfg = lovt_config.get_config(argument).unlock()
    cfg.loss.update({"group_size": 0, **loss})
    return cfg.lock()


def embeddings_of(batch, sentences, counts, *, views=1, grid=(2, 3), width=5, seed=0):
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.normal(size=(batch, *shape)).astype(np.float32)  # noqa: E731
    places = grid[0] * grid[1]
    mask = np.arange(sentences) < np.asarray(counts)[:, None]
    share = lambda *shape: rng.random((batch, *shape)).astype(np.float32)  # noqa: E731
    return Embeddings(
        image_BxVxD=normal(views, width),
        text_BxD=normal(width),
        region_BxVxhxwxD=normal(views, *grid, width),
        region_seen_BxVxRxD=normal(views, places, width),
        region_weight_BxVxR=share(views, places),
        sentence_BxMxD=normal(sentences, width),
        sentence_seen_BxVxMxD=normal(views, sentences, width),
        sentence_weight_BxM=share(sentences) * mask,
        mask_BxM=mask,
    )


def batch_of(size, has=None, hashes=None):
    return {
        "has_report": np.ones(size, bool) if has is None else np.asarray(has),
        "report_hash": np.arange(size, dtype=np.int32) if hashes is None else np.asarray(hashes, np.int32),
    }


@functools.cache
def program(**loss):
    cfg = config(**loss)
    return jax.jit(lambda e, b: methods.get("lovt").loss(e, b, cfg, 0))


def loss_of(embeddings, batch, **loss):
    total, terms = program(**loss)(embeddings, batch)
    return float(total), {name: float(x) for name, x in terms.items()}


# ---- the loss -----------------------------------------------------------------------------


def test_loss_when_all_cosines_are_equal():
    rng = np.random.default_rng(0)
    for count in (5, rng.integers(1, 9, 32)):
        counts = np.full(32, count)
        e = jax.tree.map(np.ones_like, embeddings_of(32, 8, counts, grid=(7, 7)))
        e = e.replace(mask_BxM=np.arange(8) < counts[:, None])
        expected = np.log(32) + 0.75 * np.log(49) + 0.75 * np.mean(np.log(counts))
        assert loss_of(e, batch_of(32))[0] == pytest.approx(expected, abs=1e-5)
        if np.ndim(count) == 0:
            assert expected == pytest.approx(7.59168, abs=1e-5)


def definition(floats, mask, batch, cfg, target):
    """Pairs and local terms of one view from the formulas, in float64, example by example."""
    image, text, region, region_seen, region_weight, sentence, sentence_seen, sentence_weight = (
        np.asarray(x, np.float64) for x in floats
    )
    kept = np.flatnonzero(batch["has_report"] & mask.any(axis=1))
    hashes = batch["report_hash"]
    score = slopes.unit(image[:, 0]) @ slopes.unit(text).T / cfg.loss.temperature
    sides = []
    for s in (score, score.T):
        rows = []
        for i in kept:
            rivals = [j for j in kept if j == i or hashes[j] != hashes[i] or cfg.loss.duplicates == "negative"]
            rows.append(np.logaddexp.reduce(s[i, rivals]) - s[i, i])
        sides.append(np.mean(rows))
    total = cfg.loss.image_to_text * sides[0] + cfg.loss.text_to_image * sides[1]
    for i in kept:
        real = mask[i]
        places = region_seen.shape[2]
        for a, b, weight, goal, scale in (
            (region[i, 0].reshape(places, -1), region_seen[i, 0], region_weight[i, 0], target, cfg.loss.region_weight),
            (
                sentence[i][real],
                sentence_seen[i, 0][real],
                sentence_weight[i][real],
                np.eye(real.sum()),
                cfg.loss.sentence_weight,
            ),
        ):
            s = slopes.unit(a) @ slopes.unit(b).T / cfg.loss.local_temperature
            share = weight / weight.sum()
            both = sum(np.sum(share * slopes.cross_entropy(x, goal)) for x in (s, s.T))
            total += scale * both / len(kept)
    return total


@pytest.mark.parametrize("argument", ["", "preset=released"])
def test_loss_and_gradients_equal_float64(argument):
    # One example has no report, one a report without a sentence, two have the same report.
    e = embeddings_of(6, 4, [4, 1, 2, 3, 0, 2])
    batch = batch_of(6, [True, True, True, True, True, False], [0, 1, 2, 1, 4, 5])
    cfg = config(argument, region_weight=0.3, sentence_weight=0.6)
    target = spatial_targets(2, 3).astype(np.float64)
    names = [name for name in Embeddings.__dataclass_fields__ if name != "mask_BxM"]
    weights = ("region_weight_BxVxR", "sentence_weight_BxM")

    def ours(*floats):
        whole = e.replace(**dict(zip((n for n in names if n not in weights), floats, strict=True)))
        return methods.get("lovt").loss(whole, batch, cfg, 0)[0]

    def theirs(*floats):
        given = dict(zip((n for n in names if n not in weights), floats, strict=True))
        return definition([given.get(n, getattr(e, n)) for n in names], e.mask_BxM, batch, cfg, target)

    slopes.assert_equal(ours, theirs, *(getattr(e, n) for n in names if n not in weights), rtol=1e-5, slope_rtol=1e-3)


def test_views_groups_and_padding():
    e, batch = embeddings_of(8, 4, [4, 1, 2, 3, 4, 2, 3, 1], views=2), batch_of(8)
    of_view = lambda v: e.replace(  # noqa: E731
        **{name: getattr(e, name)[:, v, None] for name in Embeddings.__dataclass_fields__ if "xV" in name}
    )
    terms, views = loss_of(e, batch)[1], [loss_of(of_view(v), batch)[1] for v in range(2)]
    halves = [loss_of(*jax.tree.map(lambda x, r=rows: x[r], (e, batch)))[1] for rows in (slice(4), slice(4, 8))]
    grouped = loss_of(e, batch, group_size=4)[1]
    assert set(terms) == {"pairs", *PARTS}
    for name in terms:
        assert terms[name] == pytest.approx((views[0][name] + views[1][name]) / 2, rel=1e-5)
        assert grouped[name] == pytest.approx((halves[0][name] + halves[1][name]) / 2, rel=1e-5)
    # Padded examples: what stands there changes nothing.
    masked = {**batch, "_mask": np.arange(8) < 6}
    total = loss_of(e, masked)[0]
    spoilt = jax.tree.map(lambda x: np.concatenate([x[:6], np.ones_like(x[6:])]), e)
    assert loss_of(spoilt, masked)[0] == pytest.approx(total, rel=1e-5)
    assert loss_of(e, batch)[0] != pytest.approx(total, rel=1e-3)
    with pytest.raises(ValueError, match="group_size=5 does not divide the batch of 8"):
        loss_of(e, batch, group_size=5)
    with pytest.raises(ValueError, match=r"smoothing 'blurred'\. Choose one of exponential, uniform, none"):
        loss_of(e, batch, smoothing="blurred")


def test_reports_of_one_sentence_and_of_none():
    one = embeddings_of(4, 3, [1, 1, 1, 1])
    _, terms = loss_of(one, batch_of(4))
    assert terms["sentence_to_seen"] == terms["seen_to_sentence"] == 0.0
    assert terms["region_to_seen"] > 0
    nothing = embeddings_of(4, 3, [0, 0, 0, 0])
    gradient = jax.jit(
        jax.value_and_grad(lambda e: methods.get("lovt").loss(e, batch_of(4), config(), 0)[0], allow_int=True)
    )
    value, slope = gradient(nothing)
    assert float(value) == 0.0
    for leaf in jax.tree.leaves(slope.replace(mask_BxM=None)):
        assert np.all(np.asarray(leaf) == 0)


# ---- the module ---------------------------------------------------------------------------


def small(argument="demo", **text):
    cfg = config(argument).unlock()
    cfg.image.size = 32
    cfg.model.trunk.widths = (4, 4, 8, 8)
    cfg.model.trunk.width = 4
    cfg.model.features = 12
    cfg.model.bn.group_size = 0
    cfg.model.bn.scope = "global"
    cfg.text.update({"max_length": 24, "max_sentences": 4, **text})
    return cfg.lock()


def tokens(counts, length=24, seed=0):
    """Reports of so many sentences, of three or four pieces each."""
    rng = np.random.default_rng(seed)
    segment = np.full((len(counts), length), -1, np.int32)
    mask = np.zeros((len(counts), length), bool)
    for row, count in enumerate(counts):
        numbers = np.repeat(np.arange(count), rng.integers(3, 5, count))
        segment[row, 1 : 1 + len(numbers)] = numbers
        mask[row, : 2 + len(numbers)] = True
    return {
        "image": rng.integers(0, 256, (len(counts), 1, 32, 32, 1)).astype(np.uint8),
        "report_ids": np.where(mask, rng.integers(5, 40, (len(counts), length)), 0).astype(np.int32),
        "report_mask": mask,
        "report_segment": segment,
        **batch_of(len(counts), np.asarray(counts) > 0),
    }


def made(cfg, batch):
    model = methods.get("lovt").build(cfg, BERT)
    return model, values(jax.eval_shape(lambda: steps.init_variables(model, batch, 0)))


def test_padded_sentences_change_nothing_in_fixed():
    batch = tokens([3, 1, 2, 4])
    model, variables = made(small(), batch)
    wide = methods.get("lovt").build(small(max_sentences=7), BERT)
    (one, one_stats), (other, other_stats) = (
        jax.jit(lambda v, b, m=m: m.apply(v, b, train=True, mutable=["batch_stats"]))(variables, batch)
        for m in (model, wide)
    )
    same = lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5)  # noqa: E731
    jax.tree.map(same, one_stats, other_stats)
    same(one.text_BxD, other.text_BxD)
    same(one.region_seen_BxVxRxD, other.region_seen_BxVxRxD)
    same(one.sentence_seen_BxVxMxD[0, 0, :3], other.sentence_seen_BxVxMxD[0, 0, :3])
    same(one.sentence_weight_BxM, other.sentence_weight_BxM[:, :4])


def test_padded_sentences_shrink_the_query_in_released():
    batch = tokens([3, 1, 2, 4])
    model, variables = made(small("demo,preset=released"), batch)
    wide = methods.get("lovt").build(small("demo,preset=released", max_sentences=7), BERT)
    assert (model.model.pool.mean_over_padding, model.model.mask_statistics) == (True, False)
    one, other = (
        jax.jit(lambda v, b, m=m: m.apply(v, b, method="embed_text").aligned["report"])(variables, batch)
        for m in (model, wide)
    )
    assert np.abs(np.asarray(one) - np.asarray(other)).max() > 1e-5


def test_texts_without_sentences_stay_out():
    batch, cfg = tokens([3, 0, 2, 4]), small()
    model, variables = made(cfg, batch)

    def total(params, batch):
        e, stats = model.apply({**variables, "params": params}, batch, train=True, mutable=["batch_stats"])
        return methods.get("lovt").loss(e, batch, cfg, 0)[0], (e, stats)

    step = jax.jit(jax.value_and_grad(total, has_aux=True))
    found = step(variables["params"], batch)
    for leaf in jax.tree.leaves(found):
        assert np.all(np.isfinite(np.asarray(leaf, np.float32)))
    assert np.all(np.asarray(found[0][1][0].sentence_weight_BxM[1]) == 0)
    # What stands in the row of a text that is not there changes neither loss nor gradients nor statistics.
    other = {**batch, "report_ids": batch["report_ids"].copy(), "report_mask": batch["report_mask"].copy()}
    other["report_ids"][1], other["report_mask"][1] = 9, True
    (value, (_, stats)), gradients = found
    (other_value, (_, other_stats)), other_gradients = step(variables["params"], other)
    same = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5)  # noqa: E731
    jax.tree.map(same, (value, stats, gradients), (other_value, other_stats, other_gradients))


def test_towers_in_evaluation():
    batch = tokens([3, 1, 2, 4])
    model, variables = made(small(), batch)
    embed_image = jax.jit(lambda v, x: model.apply(v, x, method="embed_image"))
    embed_text = jax.jit(lambda v, b: model.apply(v, b, method="embed_text").aligned["report"])
    image, again = (embed_image(variables, x) for x in (batch["image"], batch["image"][[0, 1, 1, 1]]))
    np.testing.assert_allclose(image.aligned["report"][:2], again.aligned["report"][:2], atol=1e-5)
    # What places contribute adds up to the image's vector, and differs from place to place.
    assert image.regions["report"].shape == (4, 1, 2, 2, 12)
    mean_BxVxD = np.asarray(image.regions["report"]).mean(axis=(2, 3))
    np.testing.assert_allclose(mean_BxVxD, image.aligned["report"], atol=1e-4)
    assert np.asarray(image.regions["report"]).std(axis=(2, 3)).mean() > 1e-4
    # A text has one embedding: what is behind its end does not matter, nor do other texts.
    text = embed_text(variables, batch)
    other = {**batch, "report_ids": np.where(batch["report_mask"], batch["report_ids"], 7)}
    np.testing.assert_allclose(embed_text(variables, other), text, atol=1e-5)
    # An image and a text score what the mean sentence has in common with what it sees, as the local terms have it.
    local = jax.jit(lambda v, b: model.apply(v, b, method="embed_text").local)(variables, batch)
    score = np.asarray(jax.jit(lambda i, t: methods.get("lovt").scores(i, t, small()))(image.local, local))
    for shift in (0, 1):
        other = {**batch, "image": np.roll(batch["image"], -shift, axis=0)}
        e = jax.device_get(jax.jit(lambda v, b: model.apply(v, b, train=False))(variables, other))
        cosine = np.sum(slopes.unit(e.sentence_BxMxD) * slopes.unit(e.sentence_seen_BxVxMxD[:, 0]), axis=-1)
        expected = np.sum(np.where(e.mask_BxM, e.sentence_weight_BxM * cosine, 0), axis=1)
        np.testing.assert_allclose(score[(np.arange(4) + shift) % 4, np.arange(4)], expected, atol=1e-4)
    swapped = {name: x[[3, 3, 1, 0]] for name, x in batch.items()}
    np.testing.assert_allclose(np.asarray(embed_text(variables, swapped))[[3, 2]], text[:2], atol=1e-5)


def test_parameters_of_the_paper_model():
    cfg = config()
    model = methods.get("lovt").build(cfg)
    shapes = jax.eval_shape(lambda: steps.init_variables(model, build.batch_shapes(cfg, 768), 0))["params"]
    count = lambda tree: sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))  # noqa: E731
    assert count({k: v for k, v in shapes.items() if k not in ("trunk", "text_tower")}) == 35_692_032
    assert count(shapes["trunk"]) == 23_508_032
    assert count(shapes["image_pool"]) == 16_785_408
    assert count(shapes["text_pool"]) == 2_362_368
    assert count(shapes["cross_attention"]) == 788_992
    learnt = {k: v for k, v in shapes["text_tower"].items() if k.startswith("layer_") and int(k[6:]) > 5}
    assert count(learnt) == 42_527_232


def test_regions_are_those_of_the_last_map_of_any_trunk():
    cfg = small().unlock()
    vit = dict(vit="Ti/16", width=8, layers=1, heads=2, hidden=8, patch=8, image=32, in_channels=1)
    stages = {**cfg.model.trunk, "stage_sizes": (1, 1), "widths": (4, 8), "strides": (1, 2)}
    batch = tokens([2, 1])
    for trunk, side in ((vit, 4), (stages, 4)):
        cfg.model.trunk = trunk
        model = methods.get("lovt").build(cfg, BERT)
        variables = jax.eval_shape(lambda m=model: steps.init_variables(m, batch, 0))
        image = jax.eval_shape(lambda v, m=model: m.apply(v, batch["image"], method="embed_image"), variables)
        assert image.regions["report"].shape == (2, 1, side, side, 12)
        assert image.local.shown.shape == (2, side * side, 12)


def test_other_texts_are_refused():
    for name, value, words in (
        ("sections", ("findings", "impression"), "lovt aligns images with one text"),
        ("units", "words", "lovt reads sentences from a text tower that is trained"),
        ("trained", False, "lovt reads sentences from a text tower that is trained"),
        ("split", "gloria", "LoVT reads sentences as they were written"),
        ("max_sentences", 0, "LoVT reads sentences as they were written, so many at most"),
    ):
        cfg = small().unlock()
        cfg.text[name] = value
        with pytest.raises(ValueError, match=words):
            methods.get("lovt").build(cfg)
