"""CLIP, ConVIRT, SigLIP: hand-worked losses, the formulas in float64, who takes part, towers and their gradients."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from medvlp_jax import methods
from medvlp_jax.encoders.bert import Bert, pool
from medvlp_jax.layers.logit_scale import LogitScale, at_most
from medvlp_jax.losses.schedules import Sweep
from medvlp_jax.methods.two_towers import Embeddings

NAMES = ("clip", "convirt", "siglip")
BERT = tiny.bert_config()


def get(name, argument="", **loss):
    config = importlib.import_module(f"configs.{name}").get_config(argument).unlock()
    config.loss.update({"group_size": 0, **loss})
    return config.lock()


def batch_of(size, has=None, hashes=None, section="report"):
    return {
        f"has_{section}": np.ones(size, bool) if has is None else np.asarray(has),
        f"{section}_hash": np.arange(size, dtype=np.int32) if hashes is None else np.asarray(hashes, np.int32),
    }


def embeddings_of(image, text, scale=None, bias=0.0):
    image, text = jnp.asarray(image, jnp.float32), jnp.asarray(text, jnp.float32)
    fill = lambda x: None if scale is None else jnp.full(len(image), x, jnp.float32)  # noqa: E731
    return Embeddings(image[:, None], text, fill(scale), fill(bias))


def loss_of(name, embeddings, batch=None, config=None, sweep=None):
    batch = batch_of(len(embeddings.text_BxD)) if batch is None else batch
    config = config or get(name)
    # Compiled as one program: operation by operation takes far longer.
    return jax.jit(lambda e, b: methods.get(name).loss(e, b, config, 0, sweep)[0])(embeddings, batch)


# ---- hand-worked numbers ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "preset", "size", "expected"),
    [("clip", "fixed", 32, np.log(32)), ("convirt", "fixed", 32, 3.46574), ("convirt", "mgca_variant", 72, 8.5533)],
)
def test_loss_when_nothing_is_learnt(name, preset, size, expected):
    ones = np.ones((size, 4))
    config = get(name, f"preset={preset}")
    assert float(loss_of(name, embeddings_of(ones, ones, scale=14.0), config=config)) == pytest.approx(
        expected, rel=1e-5
    )


def test_convirt_of_orthonormal_pairs():
    eye = np.eye(32)
    assert float(loss_of("convirt", embeddings_of(eye, eye))) == pytest.approx(1.406e-3, rel=1e-3)


@pytest.mark.parametrize(("size", "expected"), [(2, 10.0000908), (128, 10.005811), (1024, 10.046488)])
def test_siglip_at_its_start(size, expected):
    # Cosines of zero: images and texts in spaces of their own.
    image, text = np.ones((size, 2)) * [1, 0], np.ones((size, 2)) * [0, 1]
    value = loss_of("siglip", embeddings_of(image, text, scale=10.0, bias=-10.0))
    assert float(value) == pytest.approx(expected, rel=1e-6)


def test_siglip_of_perfect_pairs_at_its_start():
    eye = np.eye(128)
    assert float(loss_of("siglip", embeddings_of(eye, eye, 10.0, -10.0))) == pytest.approx(0.698913, rel=1e-5)


# ---- the formulas in float64 ------------------------------------------------------------


def definition(name, config, image, text, scale, bias, has, hashes):
    """The loss of one view from the papers' formulas, in float64, by loops."""
    kept = np.flatnonzero(has)
    image, text, hashes = (np.asarray(x)[kept] for x in (image, text, hashes))
    cosine = (image / np.linalg.norm(image, axis=1, keepdims=True)) @ (
        text / np.linalg.norm(text, axis=1, keepdims=True)
    ).T
    logits = (1 / config.loss.temperature if name == "convirt" else scale) * cosine + bias
    count, rule = len(kept), config.loss.duplicates

    def negatives(i):
        return [j for j in range(count) if j == i or hashes[i] != hashes[j] or rule == "negative"]

    if name == "siglip":
        total = 0.0
        for i in range(count):
            for j in range(count):
                twin = i != j and hashes[i] == hashes[j]
                if twin and rule == "mask":
                    continue
                z = 1.0 if i == j or (twin and rule == "positive") else -1.0
                total += np.logaddexp(0.0, -z * logits[i, j])
        return total / count
    rows, columns = (
        np.mean([np.logaddexp.reduce(side[i, negatives(i)]) - side[i, i] for i in range(count)])
        for side in (logits, logits.T)
    )
    forth, back = (config.loss.image_to_text, config.loss.text_to_image) if name == "convirt" else (0.5, 0.5)
    return forth * rows + back * columns


def random_case(size=10, width=5, seed=0):
    rng = np.random.default_rng(seed)
    has = rng.random(size) < 0.8
    hashes = rng.integers(0, size - 3, size)
    return rng.normal(size=(size, width)), rng.normal(size=(size, width)), has, hashes


@pytest.mark.parametrize("rule", ["mask", "negative", "positive"])
@pytest.mark.parametrize("name", NAMES)
def test_loss_and_gradients_equal_the_formulas(name, rule):
    if rule == "positive" and name != "siglip":
        pytest.skip("the sum of several positives is SigLIP's")
    image, text, has, hashes = random_case()
    config = get(name, duplicates=rule)
    scale, bias = (7.0, -1.5) if name == "siglip" else (7.0, 0.0)

    @jax.jit
    def ours(image, text, scale, bias):
        return loss_of(name, embeddings_of(image, text, scale, bias), batch_of(10, has, hashes), config)

    def theirs(image, text, scale, bias):
        return definition(name, config, image, text, scale, bias, has, hashes)

    arguments = (image, text, scale, bias)
    value, gradients = jax.value_and_grad(ours, argnums=(0, 1, 2, 3))(*(jnp.asarray(x, jnp.float32) for x in arguments))
    assert float(value) == pytest.approx(theirs(*arguments), rel=1e-5)
    rng = np.random.default_rng(1)
    for k, gradient in enumerate(gradients):
        step = 1e-5 * rng.normal(size=np.shape(arguments[k]))
        up, down = ([*arguments[:k], arguments[k] + sign * step, *arguments[k + 1 :]] for sign in (1, -1))
        if name == "clip" and k == 3:  # a bias moves no softmax
            continue
        assert float(np.sum(gradient * step)) == pytest.approx((theirs(*up) - theirs(*down)) / 2, rel=2e-3, abs=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_schedules_and_padding_change_nothing(name):
    image, text, has, hashes = random_case(12)
    embeddings, batch = embeddings_of(image, text, 7.0, -1.0), batch_of(12, has, hashes)
    expected = float(loss_of(name, embeddings, batch))
    assert float(loss_of(name, embeddings, batch, sweep=Sweep("chunked", 5))) == pytest.approx(expected, rel=1e-5)
    padded = jax.tree.map(lambda x: jnp.concatenate([x, jnp.ones_like(x[:4]) * x[0]]), embeddings)
    padded_batch = {key: np.concatenate([x, x[:4]]) for key, x in batch.items()} | {"_mask": np.arange(16) < 12}
    assert float(loss_of(name, padded, padded_batch)) == pytest.approx(expected, rel=1e-5)


def test_groups_are_separate_batches():
    image, text, _, _ = random_case(12)
    embeddings = embeddings_of(image, text, 7.0)
    halves = [
        float(loss_of("clip", jax.tree.map(lambda x, r=rows: x[r], embeddings))) for rows in (slice(6), slice(6, 12))
    ]
    grouped = loss_of("clip", embeddings, config=get("clip", group_size=6))
    assert float(grouped) == pytest.approx(sum(halves) / 2, rel=1e-6)
    with pytest.raises(ValueError, match="group_size=5 does not divide the batch of 12"):
        loss_of("clip", embeddings, config=get("clip", group_size=5))
    with pytest.raises(ValueError, match=r"pairs\.schedule='chunked'"):
        loss_of("clip", embeddings, config=get("clip", group_size=6), sweep=Sweep("chunked", 4))
    with pytest.raises(ValueError, match=r"duplicates='drop' is unknown. Choose one of mask, positive, negative"):
        loss_of("clip", embeddings, config=get("clip", duplicates="drop"))


def test_directions_of_convirt_are_not_equal():
    image, text, _, _ = random_case()
    one, other = (
        float(loss_of("convirt", embeddings_of(image, text), config=get("convirt", image_to_text=a, text_to_image=b)))
        for a, b in ((0.75, 0.25), (0.25, 0.75))
    )
    assert abs(one - other) > 1e-3


def test_the_bound_of_the_scale_can_be_left_again():
    gradient = lambda x, sign: float(jax.grad(lambda x: sign * at_most(x, 4.0))(x))  # noqa: E731
    assert float(at_most(jnp.asarray(5.0), 4.0)) == 4.0
    assert gradient(3.0, 1.0) == 1.0
    assert gradient(3.0, -1.0) == -1.0
    assert gradient(5.0, 1.0) == 1.0  # descent lowers the scale
    assert gradient(5.0, -1.0) == 0.0


# ---- towers -----------------------------------------------------------------------------


def small(name, **text):
    config = get(name, "demo").unlock()
    config.image.size = 64
    config.model.trunk.widths = (4, 4, 8, 8)
    config.model.trunk.width = 4
    config.model.features = 12
    config.text.max_length = 100
    config.text.pooling = get(name).text.pooling
    config.text.update({**tiny.TRAINED_TEXT, **text})
    return config.lock()


def tokens(size, length=100, seed=0):
    rng = np.random.default_rng(seed)
    mask = np.arange(length) < rng.integers(3, 30, size)[:, None]
    return {
        "image": rng.integers(0, 256, (size, 1, 64, 64, 1)).astype(np.uint8),
        "report_ids": np.where(mask, rng.integers(5, 40, (size, length)), 0).astype(np.int32),
        "report_mask": mask,
        **batch_of(size),
    }


def values(shapes):
    """Random variables of a trained model's size, without compiling an initialisation."""
    rng = np.random.default_rng(0)

    def leaf(path, shape):
        if path[-1].key in ("var", "scale"):
            return rng.uniform(0.5, 1.5, shape.shape).astype(np.float32)
        spread = np.sqrt(2 / np.prod(shape.shape[:-1])) if len(shape.shape) > 1 else 0.2
        return np.asarray(rng.normal(0, spread, shape.shape), np.float32)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


@pytest.mark.parametrize(("name", "scale", "bias"), [("clip", 1 / 0.07, 0.0), ("siglip", 10.0, -10.0)])
def test_logits_start_where_they_should(name, scale, bias):
    logits = LogitScale(**get(name).model.logits)
    np.testing.assert_allclose(logits.apply(logits.init(jax.random.key(0))), (scale, bias), rtol=1e-6)


@pytest.mark.parametrize("name", ["clip", "convirt"])
def test_towers_in_training_and_evaluation(name):
    config = small(name)
    model = methods.get(name).build(config, BERT)
    batch = tokens(4)
    variables = values(jax.eval_shape(lambda: model.init(jax.random.key(0), batch, train=True)))
    train = jax.jit(lambda v, b: model.apply(v, b, train=True, mutable=["batch_stats"])[0])
    embed_image = jax.jit(lambda v, x: model.apply(v, x, method="embed_image"))
    embed_text = jax.jit(lambda v, b: model.apply(v, b, method="embed_text"))
    embeddings = train(variables, batch)
    assert embeddings.image_BxVxD.shape == (4, 1, 12)
    assert (embeddings.scale_B is None) == (name == "convirt")
    image, again = (embed_image(variables, x) for x in (batch["image"], batch["image"][[0, 1, 1, 1]]))
    # An image has one embedding, whatever else is in the batch; its regions share it out among places.
    np.testing.assert_allclose(image.aligned["report"][:2], again.aligned["report"][:2], atol=1e-5)
    mean_BxVxD = np.asarray(image.regions["report"]).mean(axis=(2, 3))
    np.testing.assert_allclose(mean_BxVxD, image.aligned["report"], atol=1e-4)
    assert np.asarray(image.regions["report"]).std(axis=(2, 3)).mean() > 1e-4
    # So has a text: tokens behind its end change nothing, nor does the length that the batch is cut to.
    text = embed_text(variables, batch).aligned["report"]
    other = {**batch, "report_ids": np.where(batch["report_mask"], batch["report_ids"], 7)}
    other["report_mask"] = np.concatenate([batch["report_mask"][:3], np.ones((1, 100), bool)])
    np.testing.assert_allclose(embed_text(variables, other).aligned["report"][:3], text[:3], atol=1e-5)
    # The vectors of the tower itself, as prediction and export make them, meet the same head.
    tower = {"params": variables["params"]["text_tower"]}
    hidden_BxLxE = jax.jit(Bert(BERT).apply)(tower, batch["report_ids"], batch["report_mask"]).last
    vector_BxE = pool(hidden_BxLxE, batch["report_mask"], config.text.pooling)
    same = model.apply(variables, {"report_embedding": vector_BxE}, method="embed_text").aligned["report"]
    np.testing.assert_allclose(same, text, atol=1e-4)


def test_patches_of_a_vit_share_out_the_image():
    config = get("clip", "demo,preset=vit").unlock()
    config.image.size = config.model.trunk.image = 32
    config.model.features = 12
    model, views = methods.get("clip").build(config.lock()), tokens(3)["image"][:, :, :32, :32]
    batch = {"image": views, "report_embedding": np.ones((3, 24), np.float32), **batch_of(3)}
    variables = values(jax.eval_shape(lambda: model.init(jax.random.key(0), batch, train=True)))
    image = jax.jit(lambda v, x: model.apply(v, x, method="embed_image"))(variables, views)
    assert set(image.levels) == {"patches"}
    region_BxVxhxwxD = np.asarray(image.regions["report"])
    assert region_BxVxhxwxD.shape == (3, 1, 2, 2, 12)
    np.testing.assert_allclose(region_BxVxhxwxD.mean(axis=(2, 3)), image.aligned["report"], atol=1e-4)
    assert region_BxVxhxwxD.std(axis=(2, 3)).mean() > 1e-4


def test_a_frozen_tower_may_stand_in():
    model = methods.get("clip").build(small("clip", trained=False), BERT)
    batch = {"report_embedding": np.ones((4, 24), np.float32), **tokens(4)}
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), batch, train=True))
    assert set(variables["params"]) == {"trunk", "image_head", "text_head", "logits"}


def test_methods_refuse_texts_they_do_not_read():
    with pytest.raises(ValueError, match="clip aligns images with one text"):
        methods.get("clip").build(small("clip", sections=("findings", "impression")))
    imitate = importlib.import_module("configs.imitate").get_config("demo").unlock()
    imitate.text.trained = True
    with pytest.raises(ValueError, match="IMITATE's text tower is frozen"):
        methods.get("imitate").build(imitate)
