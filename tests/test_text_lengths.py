"""Texts encoded at the shortest padded length that holds their group: the vectors of the full length."""

import sys

import pytest
import tiny

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
