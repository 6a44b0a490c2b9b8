"""Texts encoded at the shortest padded length that holds their group: the vectors of the full length."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from medvlp_jax.encoders.bert import Bert
from medvlp_jax.methods import towers

SCRIPT = """
import jax, jax.numpy as jnp, numpy as np
from medvlp_jax import sharding, text_tower
from medvlp_jax.encoders.bert import Bert, BertConfig

assert jax.device_count() == DEVICES
sizes = dict(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
config = BertConfig(**sizes, max_position_embeddings=150, initializer_range=0.5)
start = np.zeros((1, 4), np.int32)
variables = jax.jit(Bert(config).init)(jax.random.key(0), start, start)
table = variables["params"]["position"]["embedding"]
tower = text_tower.TextTower(None, variables, 16, 150, "", config, "POOLING", jnp.float32)
places = sharding.batch_sharding(sharding.make_mesh())

encode = jax.jit(lambda variables, ids, mask: tower.encode_groups(variables, jnp.stack(ids), jnp.stack(mask)))
full = jax.jit(tower.encode)
rng = np.random.default_rng(0)
for longest in ((3, 150), (64, 65), (128, 129), (128, 64)):
    ids, mask = [], []
    for length in longest:
        lengths = rng.integers(2, length + 1, 16)
        lengths[rng.integers(16)] = length
        mask.append(np.arange(150) < lengths[:, None])
        ids.append(np.where(mask[-1], rng.integers(5, 50, (16, 150)), 0).astype(np.int32))
    expected = [full(variables, *section) for section in zip(ids, mask)]
    # A position that is read turns every vector of its group into NaN.
    cut = max(n for n in (0, 64, 128, 150) if n < max(longest)) + 64
    poisoned = {"params": {**variables["params"], "position": {"embedding": table.at[cut:].set(jnp.nan)}}}
    got = encode(poisoned, jax.device_put(ids, places), jax.device_put(mask, places))
    np.testing.assert_allclose(got, expected, atol=1e-5)
    print("equal", got.sharding)
"""


@pytest.mark.devices
@pytest.mark.parametrize(("devices", "pooling"), [(1, "mean"), (8, "cls")])
def test_vectors_at_the_shortest_length_that_holds_a_group(devices, pooling):
    script = SCRIPT.replace("DEVICES", str(devices)).replace("POOLING", pooling)
    done = tiny.run([sys.executable, "-c", script], devices=devices)
    assert done.stdout.count("equal") == 4


GRADIENTS = """
import jax, jax.numpy as jnp, numpy as np
from medvlp_jax import sharding
from medvlp_jax.encoders.bert import Bert, BertConfig, pool
from medvlp_jax.layers.text_units import segment_reduce, unit_attention
from medvlp_jax.methods import towers

assert jax.device_count() == DEVICES
jax.config.update("jax_default_matmul_precision", "highest")
sizes = dict(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
config = BertConfig(**sizes, max_position_embeddings=150, initializer_range=0.5)
start = np.zeros((1, 4), np.int32)
params = jax.jit(Bert(config).init)(jax.random.key(0), start, start)["params"]

def read(output, mask, segment):
    # All that methods read of a tower: a vector, words of its last layers, attention of its last.
    words = segment_reduce(sum(output.hidden[-2:]), segment, 150, "sum")
    paid = unit_attention(jnp.mean(output.attention[:, :, 0], axis=1), segment, 150)
    return pool(output.last, mask, "max"), words, paid

def loss(params, batch, cut, remat):
    tower = Bert(config, remat=remat).bind({"params": {**params, "layer_0": jax.lax.stop_gradient(params["layer_0"])}})
    found = towers.of_tokens(tower, read, *batch) if cut else read(tower(*batch[:2]), *batch[1:])
    return sum(jnp.sum(weight * x) for weight, x in zip(weights, found))

rng = np.random.default_rng(0)
weights = [rng.normal(size=(16, *shape)).astype(np.float32) for shape in ((16,), (150, 16), (150,))]
gradients = jax.jit(jax.value_and_grad(loss), static_argnums=(2, 3))
place = sharding.batch_sharding(sharding.make_mesh())
for longest in (64, 128, 150):
    lengths = rng.integers(2, longest + 1, 16)
    lengths[rng.integers(16)] = longest
    mask = np.arange(150) < lengths[:, None]
    ids = np.where(mask, rng.integers(5, 50, (16, 150)), 0).astype(np.int32)
    batch = jax.device_put((ids, mask, np.where(mask, np.arange(150) // 2, -1)), place)
    expected = jax.tree.leaves(gradients(params, batch, False, False))
    largest = max(np.abs(x).max() for x in expected[1:])
    for remat in (False, True):
        for a, b in zip(expected, jax.tree.leaves(gradients(params, batch, True, remat)), strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5 * largest)
        print("equal", longest, remat)
"""


@pytest.mark.devices
@pytest.mark.parametrize("devices", [1, 8])
def test_gradients_at_the_shortest_length_that_holds_a_batch(devices):
    done = tiny.run([sys.executable, "-c", GRADIENTS.replace("DEVICES", str(devices))], devices=devices)
    assert done.stdout.count("equal") == 6


def test_branches_share_the_memory_of_what_is_kept():
    """With `remat` one input of each layer and the embeddings of every length; without it, all arrays of all."""
    layers, width, texts, length = 8, 16, 8, 256
    config = tiny.bert_config(num_hidden_layers=layers, max_position_embeddings=length)
    ids = jax.ShapeDtypeStruct((texts, length), jnp.int32)
    variables = jax.eval_shape(Bert(config).init, jax.random.key(0), ids, ids)

    def kept(remat):
        def vectors(variables, ids):
            return towers.text_vectors(Bert(config, remat=remat).bind(variables), ids, ids > 0, "mean")

        backward = jax.eval_shape(
            lambda *inputs: jax.vjp(lambda v: vectors(v, inputs[1]), inputs[0])[1], variables, ids
        )
        texts_only = [x for x in jax.tree.leaves(backward) if x.ndim > 2 and texts in x.shape[:2]]
        return sum(np.prod(x.shape) * x.dtype.itemsize for x in texts_only)

    one = 4 * texts * length * width
    assert layers * one < kept(remat=True) < 2.5 * layers * one
    assert kept(remat=False) > 40 * layers * one
