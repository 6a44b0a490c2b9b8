"""Losses of methods that compare parts, with groups and without: eight simulated devices give the numbers of one."""

import json
import sys

import pytest
import tiny

SCRIPT = """
import importlib, json
import jax, numpy as np
from medvlp_jax import methods, sharding
from medvlp_jax.losses.schedules import Sweep
from medvlp_jax.methods import gloria, lovt, mgca

jax.config.update("jax_default_matmul_precision", "highest")
B, R, W, D = 16, 6, 5, 8
rng = np.random.default_rng(0)
normal = lambda *shape: rng.normal(size=(B, *shape)).astype(np.float32)
mask = np.arange(W) < rng.integers(0, W + 1, B)[:, None]
sides = normal(1, D), normal(D), normal(1, R, D), normal(W, D), mask
weight, prototypes = np.abs(normal(W)) * mask, np.broadcast_to(normal(9, D)[:1], (B, 9, D))
cases = {"gloria": gloria.Embeddings(*sides), "mgca": mgca.Embeddings(*sides, weight, prototypes)}
cases["lovt"] = lovt.Embeddings(
    image_BxVxD=normal(1, D),
    text_BxD=normal(D),
    region_BxVxhxwxD=normal(1, 2, 3, D),
    region_seen_BxVxRxD=normal(1, R, D),
    region_weight_BxVxR=normal(1, R) ** 2,
    sentence_BxMxD=normal(W, D),
    sentence_seen_BxVxMxD=normal(1, W, D),
    sentence_weight_BxM=normal(W) ** 2,
    mask_BxM=mask,
)
worst = {}
for name, e in cases.items():
    for group in (0, 4):
        config = importlib.import_module(f"configs.{name}").get_config().unlock()
        config.loss.group_size = group
        if "local" in config.loss:
            config.loss.local.update(dict(images_per_tile=2, texts_per_tile=8))
        (section,) = config.text.sections
        batch = {f"has_{section}": rng.random(B) < 0.8, f"{section}_hash": rng.integers(0, 12, B).astype(np.int32)}
        values = []
        for devices in (1, 8):
            mesh = sharding.make_mesh(devices, 1, jax.devices()[:devices])
            sweep = Sweep(mesh=mesh) if devices > 1 else Sweep()
            method, place = methods.get(name), sharding.batch_sharding(mesh)
            floats, rest = {k: v for k, v in vars(e).items() if getattr(v, "dtype", 0) == np.float32}, vars(e)
            loss = lambda floats, batch: method.loss(e.replace(**floats), batch, config, 1, sweep)[0]
            found = jax.jit(jax.value_and_grad(loss))(*jax.device_put((floats, batch), place))
            values.append(jax.device_get(found))
        for (path, a), b in zip(jax.tree.leaves_with_path(values[0]), jax.tree.leaves(values[1])):
            worst[f"{name} {group} {jax.tree_util.keystr(path)}"] = float(abs(a - b).max() / max(abs(a).max(), 1e-6))
print(json.dumps(worst))
"""


@pytest.mark.devices
def test_eight_devices_equal_one():
    done = tiny.run([sys.executable, "-c", SCRIPT], devices=8)
    worst = json.loads(done.stdout.splitlines()[-1])
    assert len(worst) == 2 * 5 + 2 * 7 + 2 * 9
    assert max(worst.values()) <= 1e-5, worst
