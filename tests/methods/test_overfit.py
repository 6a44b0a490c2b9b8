"""Sixteen pairs are learnt by heart: every image finds its text, every text its image."""

import importlib

import cv2
import jax
import numpy as np
import pytest
import tiny

from medvlp_jax import methods, optim
from medvlp_jax import step as steps
from medvlp_jax.evaluators import retrieval
from tests.evaluators import fake

PAIRS = 16
BERT = tiny.bert_config(max_position_embeddings=16)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("imitate", "fixed"),
        ("imitate", "released"),
        *((name, "fixed") for name in ("clip", "convirt", "gloria", "lovt", "m_flag", "mgca", "siglip")),
        ("hierarchical_local", "fixed"),
    ],
)
def test_sixteen_pairs_reach_perfect_retrieval(name, preset):
    config = importlib.import_module(f"configs.{name}").get_config(f"demo,preset={preset}").unlock()
    sentences = config.text.get("units") == "sentences"
    config.image.size, config.batch_size = 64, PAIRS
    config.model.trunk.widths = (8, 8, 16, 16)
    config.model.features = 0 if name == "gloria" else 32
    config.loss.group_size = config.model.bn.group_size = PAIRS if preset == "released" else 0
    config.text.max_length = 12
    if name not in ("imitate", "m_flag"):
        config.text.update(tiny.TRAINED_TEXT)
    if name == "gloria":
        config.model.last_layers = 1
    config.optimizer.rates = ()
    config.optimizer.schedule = "cosine"  # the released one does not settle in so few steps
    if config.text.trained:
        config.optimizer.warmup_steps = 0
    config.lock()
    rng = np.random.default_rng(0)
    image_BxHxW = [cv2.resize(rng.integers(0, 256, (6, 6)).astype(np.uint8), (64, 64)) for _ in range(PAIRS)]
    batch = {"image": np.repeat(np.stack(image_BxHxW)[:, None, ..., None], config.image.views, axis=1)}
    for section in config.text.sections:
        if config.text.trained:
            batch[f"{section}_ids"] = rng.integers(5, 40, (PAIRS, 12)).astype(np.int32)
            batch[f"{section}_mask"] = np.ones((PAIRS, 12), bool)
            words = np.arange(12, dtype=np.int32)
            parts = np.repeat(np.asarray([-1, 0, 1, 2, -1], np.int32), [1, 3, 3, 4, 1])
            batch[f"{section}_segment"] = np.tile(parts if sentences else words, (PAIRS, 1))
        else:
            batch[f"{section}_embedding"] = rng.normal(size=(PAIRS, 24)).astype(np.float32)
        batch[f"has_{section}"] = np.ones(PAIRS, bool)
        batch[f"{section}_hash"] = np.arange(PAIRS, dtype=np.int32)
    method = methods.get(config.method)
    model, tx = method.build(config, BERT), optim.optimizer(config.optimizer, 200)
    state = jax.jit(lambda: steps.init_state(model, tx, batch, 0))()
    train_step = jax.jit(steps.make_train_step(model, method, tx, config, examples=PAIRS), donate_argnums=0)
    losses = []
    # LoVT: until its running averages have settled.
    for _ in range({"lovt": 150, "m_flag": 200, "imitate": 100}.get(name, 70)):
        state, metrics = train_step(state, {}, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.7 * losses[0]
    variables = {"params": state["params"], "batch_stats": state["batch_stats"]}
    image = jax.jit(lambda v, x: model.apply(v, x, method="embed_image").aligned)(variables, batch["image"][:, :1])
    text = jax.jit(lambda v, b: model.apply(v, b, method="embed_text").aligned)(variables, batch)
    image = {section: np.asarray(x_BxVxD)[:, 0] for section, x_BxVxD in image.items()}
    text = {section: np.asarray(x_BxD) for section, x_BxD in text.items()}
    fields = {name: x for name, x in batch.items() if name.startswith("has_") or name.endswith("_hash")}
    scores = fake.values(retrieval.run(fake.context({"test": fake.features(image, text, **fields)}, resamples=40)))
    for section in config.text.sections:
        for direction in ("image_to_text", "text_to_image"):
            assert scores[f"retrieval/{section}/{direction}_R@1"] == 100.0, scores
