"""Micro-batches: encoders see parts of the batch, the loss sees all of it."""

import json
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from medvlp_jax import sharding
from medvlp_jax import step as steps
from medvlp_jax.layers.norm import BatchNorm
from medvlp_jax.losses.contrastive import contrastive


class Towers(nn.Module):
    """Two towers of one layer, with a normalisation and a random projection that all examples share."""

    stats_scope: str

    @nn.compact
    def __call__(self, batch, *, train):
        x = BatchNorm(stats_scope=self.stats_scope, name="norm")(nn.Dense(7)(batch["image"]), train=train)
        shared = jax.random.normal(self.make_rng("channels"), (7, 5))
        return {"x": jnp.tanh(x) @ shared, "y": nn.Dense(5)(batch["text"])}


def value_and_gradients(parts, scope, devices=1):
    rng = np.random.default_rng(0)
    batch = {"image": rng.normal(1.0, 1.0, (8, 6)), "text": rng.normal(size=(8, 4))}
    batch = jax.tree.map(lambda x: x.astype(np.float32), batch)
    model, rngs = Towers(scope), {"channels": jax.random.key(1)}
    variables = jax.jit(lambda: model.init({"params": jax.random.key(0), **rngs}, batch, train=True))()

    def loss(params):
        embeddings, batch_stats = steps.embed(model, {**variables, "params": params}, batch, rngs, parts, devices)
        return contrastive(embeddings["x"], embeddings["y"], temperature=0.2), batch_stats

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])


@pytest.mark.parametrize(("parts", "devices"), [(2, 1), (8, 1), (2, 2)])
def test_without_batchnorm_parts_equal_the_whole(parts, devices):
    (expected, _), expected_gradients = value_and_gradients(1, "frozen")
    (value, _), gradients = value_and_gradients(parts, "frozen", devices)
    np.testing.assert_allclose(float(value), float(expected), rtol=1e-6)
    largest = max(np.abs(g).max() for g in jax.tree.leaves(expected_gradients))
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected_gradients), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6 * largest)


def test_batchnorm_takes_its_statistics_from_each_part():
    (whole_value, whole), _ = value_and_gradients(1, "global")
    (parts_value, parts), _ = value_and_gradients(2, "global")
    assert float(parts_value) != pytest.approx(float(whole_value), rel=1e-6)
    # The running mean moves by a tenth once, or twice: 0.1 m against 0.19 m of about the same m.
    ratio = np.asarray(parts["norm"]["mean"]) / np.asarray(whole["norm"]["mean"])
    assert np.median(ratio) == pytest.approx(1.9, abs=0.2)


def test_batches_that_do_not_split_are_refused():
    mesh = sharding.make_mesh(1, 1, jax.devices()[:1])
    with pytest.raises(
        ValueError, match=r"batch_size=10 is not divisible .* times micro_batches=4. Use a multiple of 4"
    ):
        sharding.check_batch(10, mesh, parts=4)
    with pytest.raises(ValueError, match="micro_batches=0 must be 1 or more"):
        sharding.check_batch(10, mesh, parts=0)


# The trained step of two dense towers, wide enough that `fsdp` splits their kernels and Adam's moments.
ON_MESHES = """
import json
import flax.linen as nn, jax, jax.numpy as jnp, ml_collections, numpy as np, optax
from medvlp_jax import sharding
from medvlp_jax import step as steps
from medvlp_jax.losses.contrastive import contrastive
from medvlp_jax.losses.schedules import Sweep
from medvlp_jax.methods import Method

jax.config.update("jax_default_matmul_precision", "highest")
B = 64

class Towers(nn.Module):
    @nn.compact
    def __call__(self, batch, *, train):
        x = jnp.tanh(nn.Dense(256, name="image")(batch["image"]))
        shared = jax.random.normal(self.make_rng("channels"), (256, 32)) / 16
        return {"x": x @ shared, "y": nn.Dense(32, name="text")(batch["text"])}

def loss(embeddings, batch, config, epoch, sweep):
    return contrastive(embeddings["x"], embeddings["y"], temperature=0.2, sweep=sweep), {}

rng = np.random.default_rng(0)
batch = {"image": rng.normal(size=(B, 128)), "text": rng.normal(size=(B, 96))}
batch = jax.tree.map(lambda x: x.astype(np.float32), batch)
model, tx, method = Towers(), optax.chain(optax.trace(1.0), optax.scale(-1.0)), Method(None, loss)

def run(devices, data, fsdp, parts, schedule):
    mesh = sharding.make_mesh(data, fsdp, jax.devices()[:devices])
    sweep = Sweep(schedule, 16, mesh)
    config = ml_collections.ConfigDict({"micro_batches": parts, "batch_size": B, "optimizer": {"rates": ()}})
    make, target = steps.sharded_state(model, tx, batch, 0, mesh)
    step = steps.make_train_step(model, method, tx, config, examples=B, sweep=sweep)
    step = steps.compile_train_step(step, target, mesh)
    state, metrics = step(make(), {}, jax.device_put(batch, sharding.batch_sharding(mesh)))
    moments = state["opt_state"][0].trace  # the gradients themselves
    held = {
        name: list(tree["image"]["kernel"].addressable_shards[0].data.shape)
        for name, tree in (("params", state["params"]), ("opt_state", moments))
    }
    return float(metrics["loss"]), jax.device_get(moments), held

expected_loss, expected, _ = run(1, 1, 1, 1, "dense")
scale = max(np.abs(g).max() for g in jax.tree.leaves(expected))
found = {}
for words in ("8 1 2 dense", "1 8 4 chunked", "4 2 2 ring", "4 2 4 dense"):
    data, fsdp, parts, schedule = (int(w) if w.isdecimal() else w for w in words.split())
    value, gradients, held = run(8, data, fsdp, parts, schedule)
    errors = jax.tree.map(lambda a, b: float(np.abs(a - b).max() / scale), gradients, expected)
    found[words] = [abs(value / expected_loss - 1), max(jax.tree.leaves(errors)), held]
print(json.dumps(found))
"""


@pytest.mark.devices
def test_on_meshes_parts_equal_the_whole_batch_on_one_device():
    done = tiny.run([sys.executable, "-c", ON_MESHES], devices=8)
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 4
    for mesh, (loss_error, gradient_error, held) in found.items():
        assert loss_error < 1e-6, mesh
        assert gradient_error < 1e-6, mesh
        fsdp = int(mesh.split()[1])
        assert held == {"params": [128, 256 // fsdp], "opt_state": [128, 256 // fsdp]}, mesh
