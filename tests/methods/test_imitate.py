"""IMITATE: sizes, terms against hand-worked numbers and PyTorch, masks, groups."""

import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from configs import imitate as imitate_config
from medvlp_jax import methods
from medvlp_jax.methods import imitate

WIDTH = 768


def config(preset="fixed", **loss):
    cfg = imitate_config.get_config(f"preset={preset}").unlock()
    cfg.model.dtype = "float32"
    cfg.loss.update(loss)
    return cfg.lock()


def small_config(preset="fixed"):
    cfg = imitate_config.get_config(f"demo,preset={preset}").unlock()
    cfg.image.size = 64
    cfg.model.trunk.stage_sizes = (1, 1, 1, 1)
    cfg.model.bn.group_size = cfg.loss.group_size = 4 if preset == "released" else 0
    return cfg.lock()


def random_batch(size=8, seed=0, pixels=64, width=WIDTH):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (size, 2, pixels, pixels, 1)).astype(np.uint8),
        "findings_embedding": rng.normal(size=(size, width)).astype(np.float32),
        "impression_embedding": rng.normal(size=(size, width)).astype(np.float32),
        "has_findings": np.ones(size, bool),
        "has_impression": np.ones(size, bool),
        "findings_hash": np.arange(size, dtype=np.int32),
        "impression_hash": np.arange(size, dtype=np.int32),
    }


def random_embeddings(size=8, features=16, seed=0):
    rng = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape).astype(np.float32))  # noqa: E731
    return imitate.Embeddings(
        read_BxVxPxD=normal(size, 2, 2, features),
        diagnosis_BxVxD=normal(size, 2, features),
        findings_BxD=normal(size, features),
        impression_BxD=normal(size, features),
        findings_BxE=normal(size, 32),
        impression_BxE=normal(size, 32),
    )


def loss_of(embeddings, batch, cfg, epoch=0.0):
    """Total and terms, compiled as one program: operation by operation takes far longer."""
    return jax.jit(lambda e, b, t: imitate.loss(e, b, cfg, t))(embeddings, batch, epoch)


@functools.cache
def compiled(preset):
    """The module of a small config, variables for texts 24 wide, and its compiled image tower."""
    model = methods.get("imitate").build(small_config(preset))
    key, batch = jax.random.key(0), random_batch(4, width=24)
    shapes = jax.eval_shape(lambda: model.init({"params": key, "channels": key}, batch, train=True))
    return model, tiny.fill(shapes), jax.jit(lambda v, x: model.apply(v, x, method="embed_image"))


def test_parameter_count_of_the_paper_model():
    cfg = config()
    model = methods.get("imitate").build(cfg)
    rngs = {"params": jax.random.key(0), "channels": jax.random.key(1)}
    shapes = jax.eval_shape(lambda: model.init(rngs, random_batch(2, pixels=224), train=True))
    count = lambda tree: sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))  # noqa: E731
    assert count(shapes["params"]["trunk"]) == 23_508_032
    assert count(shapes["params"]) == 30_664_512


def test_loss_when_nothing_is_learnt():
    # All logits equal, uncorrelated prior, mu = 1: eight terms of ln 128.
    ones = jnp.ones((128, 2, 4))
    eye = jnp.concatenate([jnp.eye(128), -jnp.eye(128)], axis=1)  # rows uncorrelated
    embeddings = imitate.Embeddings(ones[:, :, None], ones, ones[:, 0], ones[:, 0], eye, eye)
    for preset in ("fixed", "released"):
        total, terms = loss_of(embeddings, random_batch(128), config(preset))
        assert float(total) == pytest.approx(77.632, abs=0.01), preset
        assert float(terms["diagnosis"]) == pytest.approx(4 * np.log(128), abs=0.01)


def test_mu_schedule():
    epochs = jnp.array([0, 30, 31, 40, 49, 50])
    np.testing.assert_allclose(imitate.read_weight(epochs), [1, 1, 1.25, 0.8, 0.35, 0.3], rtol=1e-6)


def test_released_terms_equal_pytorch():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
    import torch_imitate

    e = random_embeddings(16)
    tensor = lambda x: torch.from_numpy(np.array(x))  # noqa: E731
    views = lambda x: tensor(jnp.moveaxis(x, 1, 0))  # noqa: E731
    expected, expected_terms = torch_imitate.released_loss(
        views(e.diagnosis_BxVxD),
        views(e.read_BxVxPxD[:, :, 0]),
        views(e.diagnosis_BxVxD),
        views(e.read_BxVxPxD[:, :, 1]),
        tensor(e.impression_BxD),
        tensor(e.findings_BxD),
        tensor(e.impression_BxE),
        tensor(e.findings_BxE),
    )
    total, terms = loss_of(e, random_batch(16), config("released", group_size=16))
    assert float(total) == pytest.approx(float(expected), rel=1e-6)
    for name, value in expected_terms.items():
        assert float(terms[name]) == pytest.approx(float(value), rel=1e-5), name


def test_presets_agree_at_the_reference_batch_without_gaps_or_copies():
    e = random_embeddings(128)
    batch = random_batch(128)
    fixed, _ = loss_of(e, batch, config("fixed"))
    released, _ = loss_of(e, batch, config("released"))
    assert float(fixed) == pytest.approx(float(released), rel=1e-6)


def test_missing_sections_are_masked():
    batch = random_batch()
    batch["has_findings"] = np.array([1, 0, 1, 1, 1, 0, 1, 1], bool)
    e = random_embeddings()
    changed = e.replace(
        findings_BxD=e.findings_BxD.at[1].set(9.0), findings_BxE=e.findings_BxE.at[5].add(jnp.arange(32.0))
    )
    _, terms = loss_of(e, batch, config())
    _, other = loss_of(changed, batch, config())
    assert float(terms["read"]) == float(other["read"])
    # Without the two studies the term is the same: they are neither rows nor columns.
    kept = np.flatnonzero(batch["has_findings"])
    small_e, small_b = jax.tree.map(lambda x: x[kept], (e, batch))
    _, expected = loss_of(small_e, small_b, config())
    assert float(terms["read"]) == pytest.approx(float(expected["read"]), rel=1e-6)
    released = config("released", group_size=8)
    _, unmasked = loss_of(e, {**batch, "has_findings": np.ones(8, bool)}, released)
    assert float(unmasked["read"]) != pytest.approx(float(terms["read"]), rel=1e-3)


def test_a_batch_without_any_impression_is_finite():
    batch = {**random_batch(), "has_impression": np.zeros(8, bool)}
    value, grads = jax.value_and_grad(lambda e: loss_of(e, batch, config())[0])(random_embeddings())
    assert np.isfinite(value)
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads))


def test_padding_takes_no_part():
    e, batch = random_embeddings(), random_batch()
    padded_e = jax.tree.map(lambda x: jnp.concatenate([x, jnp.zeros_like(x[:3])]), e)
    padded_b = {k: np.concatenate([v, np.zeros_like(v[:3])]) for k, v in batch.items()}
    padded_b["_mask"] = np.arange(11) < 8
    expected, expected_terms = loss_of(e, batch, config())
    total, terms = loss_of(padded_e, padded_b, config())
    for name in terms:
        assert float(terms[name]) == pytest.approx(float(expected_terms[name]), rel=1e-5), name
    assert float(total) == pytest.approx(float(expected), rel=1e-5)


def test_groups_are_separate_batches():
    e, batch = random_embeddings(8), random_batch(8)
    cfg = config("released", group_size=4)
    total, _ = loss_of(e, batch, cfg)
    halves = [loss_of(*jax.tree.map(lambda x, h=half: x[4 * h : 4 * h + 4], (e, batch)), cfg)[0] for half in (0, 1)]
    assert float(total) == pytest.approx(float(sum(halves)) / 2, rel=1e-6)
    with pytest.raises(ValueError, match="group_size=3 does not divide the batch of 8"):
        loss_of(e, batch, config("released", group_size=3))


def test_copies_of_a_report_do_not_repel():
    e, batch = random_embeddings(), random_batch()
    batch["impression_hash"] = np.array([0, 0, 2, 3, 4, 5, 6, 7], np.int32)
    _, masked = loss_of(e, batch, config())
    _, negative = loss_of(e, batch, config(duplicates="negative"))
    assert float(masked["diagnosis"]) < float(negative["diagnosis"])
    assert float(masked["view_diagnosis"]) == float(negative["view_diagnosis"])
    with pytest.raises(ValueError, match="mask, negative"):
        loss_of(e, batch, config(duplicates="drop"))


@pytest.mark.parametrize("preset", ["fixed", "released"])
def test_towers_in_training_and_evaluation(preset):
    features = small_config(preset).model.features
    model, variables, embed_image = compiled(preset)
    batch = random_batch(8, width=24)
    train = jax.jit(lambda v, b, r: model.apply(v, b, train=True, rngs={"channels": r}, mutable=["batch_stats"]))
    embeddings, updated = train(variables, batch, jax.random.key(1))
    assert embeddings.read_BxVxPxD.shape == (8, 2, 2, features)
    assert not np.allclose(embeddings.read_BxVxPxD[:, :, 0], embeddings.read_BxVxPxD[:, :, 1])  # two draws
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), variables["batch_stats"], updated["batch_stats"])
    assert all(jax.tree.leaves(moved))
    image = embed_image(variables, batch["image"][:, :1])
    again = embed_image(variables, np.concatenate([batch["image"][:3, :1], 255 - batch["image"][3:, :1]]))
    for section in ("findings", "impression"):
        assert image.aligned[section].shape == (8, 1, features)
        # An image has one embedding, whatever else is in the batch.
        np.testing.assert_allclose(image.aligned[section][:3], again.aligned[section][:3], atol=1e-5)
    assert image.pooled_BxVxC.shape == (8, 1, 64)
    # Regions share the image's vector out among places.
    region_BxhxwxD = np.asarray(image.regions["impression"])[:, 0]
    assert region_BxhxwxD.std(axis=(1, 2)).mean() > 1e-3
    np.testing.assert_allclose(region_BxhxwxD.mean(axis=(1, 2)), image.aligned["impression"][:, 0], atol=1e-4)
    text = model.apply(variables, batch, method="embed_text")
    assert text.aligned["impression"].shape == (8, features)


def test_view_order_does_not_matter_to_the_stored_layout():
    # Example-major folding: the views of one image stay together.
    _, variables, embed_image = compiled("fixed")
    image = random_batch(8)["image"]
    both = embed_image(variables, image).aligned["impression"]
    second = embed_image(variables, image[:, 1:]).aligned["impression"]
    np.testing.assert_allclose(both[:, 1], second[:, 0], atol=1e-5)


def test_unknown_method_lists_the_known():
    with pytest.raises(ValueError, match="imitate"):
        methods.get("imitat")
