"""M-FLAG: its two terms over views, groups and padding, and parameter counts of the paper's model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import m_flag as m_flag_config
from medvlp_jax import build, methods
from medvlp_jax import step as steps
from medvlp_jax.methods.two_towers import Embeddings


def config(preset="fixed", **loss):
    cfg = m_flag_config.get_config(f"preset={preset}").unlock()
    cfg.loss.update({"group_size": 0, **loss})
    return cfg.lock()


def case(size=8, views=1, seed=0):
    rng = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    embeddings = Embeddings(normal(size, views, 6), normal(size, 6), latent_BxVxC=normal(size, views, 5))
    return embeddings, {"has_report": rng.random(size) < 0.7, "report_hash": np.arange(size, dtype=np.int32)}


def definition(embeddings, has):
    """Both terms of one view in float64."""
    image, text, latent = (
        np.asarray(x, np.float64)
        for x in (embeddings.image_BxVxD[:, 0], embeddings.text_BxD, embeddings.latent_BxVxC[:, 0])
    )
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    alignment = np.mean((4 - 4 * np.sum(unit(image) * unit(text), axis=1))[has])
    c = latent.T @ latent / len(latent)
    eye = np.eye(len(c), dtype=bool)
    return alignment, 0.5 * (np.sum((c[eye] - 1) ** 2) + 0.0051 * np.sum(c[~eye] ** 2))


def loss(embeddings, batch, cfg=None):
    cfg = cfg or config()
    total, terms = jax.jit(lambda e, b: methods.get("m_flag").loss(e, b, cfg, 0))(embeddings, batch)
    return float(total), {name: float(x) for name, x in terms.items()}


def test_terms_equal_the_formulas():
    embeddings, batch = case()
    total, terms = loss(embeddings, batch)
    expected = definition(embeddings, batch["has_report"])
    assert terms["alignment"] == pytest.approx(expected[0], rel=1e-5)
    assert terms["orthogonality"] == pytest.approx(expected[1], rel=1e-5)
    assert total == pytest.approx(sum(expected), rel=1e-5)


def test_views_groups_and_padding():
    embeddings, batch = case(8, views=2)
    whole = loss(embeddings, batch)[1]
    each = [
        loss(
            embeddings.replace(
                image_BxVxD=embeddings.image_BxVxD[:, v, None], latent_BxVxC=embeddings.latent_BxVxC[:, v, None]
            ),
            batch,
        )[1]
        for v in range(2)
    ]
    halves = [loss(*jax.tree.map(lambda x, r=rows: x[r], (embeddings, batch)))[1] for rows in (slice(4), slice(4, 8))]
    grouped = loss(embeddings, batch, config(group_size=4))[1]
    for name in whole:
        assert whole[name] == pytest.approx((each[0][name] + each[1][name]) / 2, rel=1e-5)
        assert grouped[name] == pytest.approx((halves[0][name] + halves[1][name]) / 2, rel=1e-5)
    padded = jax.tree.map(lambda x: jnp.concatenate([x, 9 * jnp.ones_like(x[:3])]), embeddings)
    padded_batch = {name: np.concatenate([x, x[:3]]) for name, x in batch.items()} | {"_mask": np.arange(11) < 8}
    assert loss(padded, padded_batch)[1] == pytest.approx(whole, rel=1e-5)


def test_parameter_counts_of_the_paper_model():
    cfg = config()
    model = methods.get("m_flag").build(cfg)
    shapes = jax.eval_shape(lambda: steps.init_variables(model, build.batch_shapes(cfg, 768), 0))["params"]
    count = lambda tree: sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))  # noqa: E731
    assert count(shapes["image_head"]) == 6_298_624
    assert count(shapes["text_head"]) == 3_677_184
    assert count(shapes) == 33_483_840


def test_a_text_tower_that_learns_is_refused():
    cfg = config().unlock()
    cfg.text.trained = True
    with pytest.raises(ValueError, match="M-FLAG's text tower is frozen"):
        methods.get("m_flag").build(cfg)
