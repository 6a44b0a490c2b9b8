"""GLoRIA: hand-worked losses, what its towers give word by word, who takes part, and what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict

from configs import gloria as gloria_config
from medvlp_jax import build, methods
from medvlp_jax import step as steps
from medvlp_jax.encoders.bert import Bert
from medvlp_jax.losses.contrastive import contrastive
from medvlp_jax.losses.schedules import Sweep
from medvlp_jax.losses.word_region import word_region_loss, word_region_scores
from medvlp_jax.methods import towers
from medvlp_jax.methods.gloria import Embeddings
from tests.methods.test_two_towers import batch_of, values

BERT = tiny.bert_config(num_hidden_layers=2)
LENGTH = 12
METHOD = methods.get("gloria")


def get(argument="", **fields) -> ConfigDict:
    config = gloria_config.get_config(argument).unlock()
    config.update_from_flattened_dict(fields)
    return config.lock()


def embeddings_of(size, regions=6, words=5, width=8, seed=0):
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.normal(size=(size, *shape)).astype(np.float32)  # noqa: E731
    mask = np.arange(words) < rng.integers(1, words + 1, size)[:, None]
    return Embeddings(normal(1, width), normal(width), normal(1, regions, width), normal(words, width), mask)


@functools.cache
def compiled(argument, fields):
    config = get(argument, **dict(fields))
    return jax.jit(lambda e, b: METHOD.loss(e, b, config, 0))


def loss_of(embeddings, batch=None, argument="", **fields):
    batch = batch_of(len(embeddings.text_BxD)) if batch is None else batch
    return compiled(argument, tuple((f"loss.{name}", value) for name, value in fields.items()))(embeddings, batch)


# ---- losses -----------------------------------------------------------------------------


def test_released_loss_of_plain_arrays_when_nothing_is_learnt():
    # The same image and text 48 times: 2 ln 48 for each of the two losses.
    ones = lambda *shape: np.ones((48, *shape), np.float32)  # noqa: E731
    same = Embeddings(ones(1, 4), ones(4), ones(1, 9, 4), ones(3, 4), np.ones((48, 3), bool))
    value, terms = loss_of(same, batch_of(48, section="impression", hashes=np.zeros(48)), "preset=released")
    assert float(value) == pytest.approx(15.4848, abs=1e-4)
    assert float(terms["local"]) == pytest.approx(float(terms["pairs"]), rel=1e-6)


def test_loss_is_both_terms_and_scales_of_texts_do_not_matter():
    e, fields = embeddings_of(8), {"local_weight": 0.5, "global_weight": 2.0}
    value, terms = loss_of(e, **fields)
    local = jax.jit(word_region_loss)(e.region_BxVxRxD[:, 0], e.word_BxWxD, e.mask_BxW)
    pairs = jax.jit(contrastive, static_argnames="temperature")(e.image_BxVxD[:, 0], e.text_BxD, temperature=0.1)
    np.testing.assert_allclose([terms["local"], terms["pairs"]], [local, pairs], rtol=1e-5)
    assert float(value) == pytest.approx(0.5 * float(local) + 2 * float(pairs), rel=1e-5)
    scaled = loss_of(e.replace(text_BxD=7 * e.text_BxD), **fields)[1]
    np.testing.assert_allclose(scaled["pairs"], terms["pairs"], rtol=1e-5)


def test_padding_and_texts_without_words_take_no_part():
    e, has, real = embeddings_of(8), np.arange(8) != 5, np.arange(8) < 7
    mask = e.mask_BxW.copy()
    mask[2] = False  # a text without a word: in the global term alone
    e = e.replace(mask_BxW=mask)
    batch = {**batch_of(8, has), "_mask": real}
    terms = loss_of(e, batch)[1]
    for term, rows in (("local", [2, 5, 7]), ("pairs", [5, 7])):
        spoilt = jax.tree.map(
            lambda x, rows=rows: np.where(np.isin(np.arange(8), rows).reshape(-1, *[1] * (x.ndim - 1)), 0 * x, x), e
        )
        assert float(loss_of(spoilt, batch)[1][term]) == pytest.approx(float(terms[term]), rel=1e-6)
    assert float(loss_of(e, {**batch, "_mask": np.ones(8, bool)})[0]) != pytest.approx(sum(map(float, terms.values())))
    nothing = loss_of(e.replace(mask_BxW=0 * mask > 0), {**batch, "has_report": np.zeros(8, bool)})
    assert float(nothing[0]) == 0.0


def test_groups_are_separate_batches_and_copies_no_negatives():
    e = embeddings_of(8)
    halves = [float(loss_of(jax.tree.map(lambda x, r=rows: x[r], e))[0]) for rows in (slice(4), slice(4, 8))]
    assert float(loss_of(e, group_size=4)[0]) == pytest.approx(np.mean(halves), rel=1e-5)
    copies = {**batch_of(8, hashes=[0, 1, 2, 3, 4, 5, 6, 0]), "_mask": np.ones(8, bool)}
    values = [loss_of(e, copies, **rule)[1] for rule in ({}, {"duplicates": "negative"}, {"duplicates": "positive"})]
    for term in ("local", "pairs"):
        assert float(values[0][term]) < float(values[1][term])
        assert len({round(float(terms[term]), 4) for terms in values}) == 3


# ---- towers -----------------------------------------------------------------------------

SMALL = {
    "image.size": 32,
    "model.trunk.widths": (4, 4, 8, 8),
    "model.trunk.width": 4,
    "text.max_length": LENGTH,
}


def tokens(size=4, seed=0):
    """Texts of 2 (no word) to 12 pieces; every third piece goes on with the word before."""
    rng = np.random.default_rng(seed)
    count = np.asarray([2, LENGTH, 7, 5])[:size]
    mask = np.arange(LENGTH) < count[:, None]
    inner = np.arange(LENGTH) % 3 == 2
    last = np.arange(LENGTH) == count[:, None] - 1
    segment = np.where(mask, np.cumsum(mask & ~(inner & ~last), axis=1) - 1, 0)  # padding as batches have it: zeros
    return {
        "image": rng.integers(0, 256, (size, 1, 32, 32, 1)).astype(np.uint8),
        "report_ids": np.where(mask, rng.integers(5, 40, (size, LENGTH)), 0).astype(np.int32),
        "report_mask": mask,
        "report_segment": segment.astype(np.int32),
        **batch_of(size),
    }


def made(argument="demo", **fields):
    config = get(argument, **{**SMALL, **fields})
    model = METHOD.build(config, BERT)
    shapes = jax.eval_shape(lambda: steps.init_variables(model, build.batch_shapes(config, 16), 0))
    return config, model, values(shapes)


@pytest.fixture(scope="module")
def seen():
    """The fixed preset on four examples: its config, parameters, images and a function that reads texts."""
    config, model, variables = made()
    image = jax.jit(lambda v, x: model.apply(v, x, method="embed_image"))(variables, tokens()["image"])
    read = jax.jit(lambda b: model.apply(variables, b, method="embed_text"))
    return config, variables, image, read


def test_words_are_sums_of_pieces_and_of_layers(seen):
    _, variables, _, read = seen
    batch = tokens()
    text = read(batch)
    tower = {"params": variables["params"]["text_tower"]}
    hidden = jax.jit(Bert(BERT).apply)(tower, batch["report_ids"], batch["report_mask"]).hidden
    piece = np.asarray(hidden[1] + hidden[2])
    for row in range(4):
        real = batch["report_mask"][row]
        np.testing.assert_allclose(text.aligned["report"][row], piece[row, real].mean(axis=0), atol=1e-4)
        segment = np.where(real, batch["report_segment"][row], -1)
        words = segment.max() - 1  # without [CLS] and [SEP]
        assert np.flatnonzero(text.local.mask_BxW[row]).tolist() == list(range(1, words + 1))
        for word in range(segment.max() + 1):
            got = text.local.word_BxWxD[row, word]
            np.testing.assert_allclose(got, piece[row, segment == word].sum(axis=0), atol=1e-4)
        assert np.all(np.asarray(text.local.word_BxWxD[row, segment.max() + 1 :]) == 0)
    # What is behind the end of a text changes nothing.
    other = {**batch, "report_ids": np.where(batch["report_mask"], batch["report_ids"], 7)}
    other["report_segment"] = np.where(batch["report_mask"], batch["report_segment"], 3).astype(np.int32)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), text, read(other))


def test_words_of_training_and_means_as_released(seen):
    batch = tokens()
    _, model, variables = made("demo,preset=released", **{"text.sections": ("report",)})
    released = jax.jit(lambda v: model.apply(v, batch, train=False))(variables)
    # [CLS] is compared, [SEP] is not; the mean has another length and the same direction.
    assert released.mask_BxW.sum(axis=1).tolist() == [1, 8, 4, 3]
    assert np.all(np.asarray(released.mask_BxW[:, 0]))
    fixed = np.asarray(seen[-1](batch).aligned["report"]) * batch["report_mask"].sum(axis=1)[:, None]
    np.testing.assert_allclose(np.asarray(released.text_BxD) * LENGTH, fixed, rtol=1e-4, atol=1e-4)


def test_regions_are_those_of_the_level_and_scores_take_the_best_word(seen):
    config, variables, image, read = seen
    assert image.levels["stage3"].shape[1:3] == image.regions["report"].shape[2:4] == (2, 2)
    kernel = variables["params"]["region_head"]["linear2"]["kernel"]
    np.testing.assert_allclose(image.regions["report"][:, 0], image.levels["stage3"] @ kernel, atol=1e-4)
    np.testing.assert_allclose(image.local, np.reshape(image.regions["report"], (4, 4, 16)))
    words = read(tokens()).local
    assert words.mask_BxW.sum(axis=1).tolist() == [0, 7, 3, 2]
    got = jax.jit(lambda: METHOD.scores(image.local, words, config))()
    expected = jax.jit(lambda: word_region_scores(image.local, *words, pool="max", sweep=Sweep()))()
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert np.all(np.asarray(got)[:, 0] == 0)  # a text without words
    by_all_words = get("demo", **{"model.local.pool": "logsumexp"})
    other = jax.jit(lambda: METHOD.scores(image.local, words, by_all_words))()
    assert np.all(np.asarray(other)[:, 1] > np.asarray(got)[:, 1])


def test_images_are_enlarged_corner_on_corner():
    ramp = np.arange(6.0)[:, None] + 10 * np.arange(4.0)
    got = np.asarray(towers.enlarge(ramp[None, ..., None], 11))[0, ..., 0]
    expected = np.linspace(0, 5, 11)[:, None] + 10 * np.linspace(0, 3, 11)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    _, model, variables = made(**{"model.upsample": 48})
    image = jax.eval_shape(lambda v: model.apply(v, tokens()["image"], method="embed_image"), variables)
    assert image.regions["report"].shape == (4, 1, 3, 3, 16)


def test_sizes_of_the_full_recipe():
    config = get()
    model = METHOD.build(config)
    variables = jax.eval_shape(lambda: steps.init_variables(model, build.batch_shapes(config, 768), 0))
    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))  # noqa: E731
    sizes = {name: count(tree) for name, tree in variables["params"].items() if name != "text_tower"}
    assert sizes == {"trunk": 23_508_032, "region_head": 786_432, "image_head": 1_573_632}
    view = jnp.zeros((1, 1, 224, 224, 1), jnp.uint8)
    image = jax.eval_shape(lambda v: model.apply(v, view, method="embed_image"), variables)
    assert image.local.shape == (1, 361, 768)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model.local.level": "stage5"}, "missing local level. This trunk has stage1, stage2, stage3, stage4"),
        (
            {"model.trunk.stage_sizes": (1, 1), "model.trunk.widths": (4, 4), "model.trunk.strides": (1, 2)},
            "level='stage3'",
        ),
        ({"model.features": 32}, "16 wide. Use --config.model.features=0"),
        ({"model.last_layers": 4}, "the text tower has 2 layers"),
        ({"model.local.tokens": "all"}, "tokens='all' is unknown. Choose one of words, cls_and_words"),
        ({"text.trained": False}, "gloria reads words from a text tower that is trained"),
        ({"text.units": "sentences"}, "gloria reads words from a text tower"),
        ({"text.sections": ("findings", "impression")}, "gloria aligns images with one text"),
    ],
)
def test_what_it_refuses(fields, words):
    with pytest.raises(ValueError, match=words):
        made(**fields)
