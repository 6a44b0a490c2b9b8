"""One device, eight simulated devices and two processes of four: the same losses, gradients and parameters."""

import json
import shutil
import sys

import numpy as np
import pytest
import tiny

GRADIENTS = """
import sys
import jax, numpy as np
sys.path.insert(0, "tests")
from configs import imitate as imitate_config
from medvlp_jax import methods, sharding
from jax.sharding import Mesh

jax.config.update("jax_default_matmul_precision", "highest")
cfg = imitate_config.get_config("demo,preset=PRESET").unlock()
cfg.image.size = 64
cfg.model.trunk.stage_sizes = (1, 1, 1, 1)
cfg.model.bn.group_size = cfg.loss.group_size = GROUP
method = methods.get("imitate")
model = method.build(cfg)
rng = np.random.default_rng(0)
batch = {
    "image": rng.integers(0, 256, (16, 2, 64, 64, 1)).astype(np.uint8),
    "findings_embedding": rng.normal(size=(16, 24)).astype(np.float32),
    "impression_embedding": rng.normal(size=(16, 24)).astype(np.float32),
    "has_findings": rng.random(16) < 0.8,
    "has_impression": rng.random(16) < 0.8,
    "findings_hash": rng.integers(0, 12, 16).astype(np.int32),
    "impression_hash": rng.integers(0, 12, 16).astype(np.int32),
}
key = jax.random.key(0)
variables = jax.jit(lambda: model.init({"params": key, "channels": key}, batch, train=True))()

def loss(params, batch):
    embeddings, updated = model.apply(
        {**variables, "params": params}, batch, train=True, rngs={"channels": key}, mutable=["batch_stats"]
    )
    return method.loss(embeddings, batch, cfg, 0)[0], updated

values = {}
for data, fsdp in ((1, 1), (8, 1), (2, 4)):
    mesh = sharding.make_mesh(data, fsdp, jax.devices()[: data * fsdp])
    places = sharding.parameter_sharding(variables["params"], mesh)
    step = jax.jit(
        jax.value_and_grad(loss, has_aux=True), in_shardings=(places, sharding.batch_sharding(mesh))
    )
    (value, updated), grads = step(
        jax.device_put(variables["params"], places), jax.device_put(batch, sharding.batch_sharding(mesh))
    )
    values[f"{data}x{fsdp}"] = jax.device_get((value, grads, updated))
reference = values["1x1"]
# Biases before a BatchNorm have a gradient of zero: their rounding is measured against the largest gradient.
largest = max(float(np.max(np.abs(g))) for g in jax.tree.leaves(reference[1]))
for name, other in values.items():
    for part, floor in ((0, 0.0), (1, largest), (2, 1e-3)):
        for a, b in zip(jax.tree.leaves(reference[part]), jax.tree.leaves(other[part]), strict=True):
            worst = float(np.max(np.abs(a - b))) / max(float(np.max(np.abs(a))), floor)
            assert worst <= 1e-5, (name, part, a.shape, worst)
print("equal", float(reference[0]))
"""


@pytest.mark.devices
@pytest.mark.parametrize(("preset", "group"), [("fixed", 0), ("released", 8)])
def test_loss_gradients_and_statistics_do_not_depend_on_the_mesh(preset, group):
    script = GRADIENTS.replace("PRESET", preset).replace("GROUP", str(group))
    assert "equal" in tiny.run([sys.executable, "-c", script], devices=8).stdout


STEPS = """
import sys
import jax, numpy as np
sys.path.insert(0, "tests")
from medvlp_jax import methods, optim, sharding
from medvlp_jax import step as steps
from medvlp_jax.losses.schedules import Sweep
from methods import test_composed, test_gloria, test_lovt, test_mgca, test_two_towers
from methods.test_two_towers import BERT, values

jax.config.update("jax_default_matmul_precision", "highest")
B = 16
CASES
for name, cfg, schedule, batch, bert in cases:
    cfg = cfg.unlock()
    cfg.optimizer.rates, cfg.optimizer.name, cfg.optimizer.schedule = (), "sgd", "constant"  # updates as gradients are
    cfg.optimizer.warmup_steps, cfg.optimizer.learning_rate, cfg.optimizer.weight_decay = 0, 0.01, 0.0
    model, method = methods.get(name).build(cfg.lock(), bert), methods.get(name)
    tx = optim.optimizer(cfg.optimizer, 10)
    variables = values(jax.eval_shape(lambda: steps.init_variables(model, batch, 0)))
    results = []
    for devices, kind in ((1, "dense"), (8, schedule)):
        mesh = sharding.make_mesh(devices, 1, jax.devices()[:devices])
        _, target = steps.sharded_state(model, tx, batch, 0, mesh)
        train_step = steps.make_train_step(model, method, tx, cfg, examples=64, sweep=Sweep(kind, 8, mesh))
        train_step = steps.compile_train_step(train_step, target, mesh)
        state = jax.device_put(steps.start_state(variables, tx, 0), jax.tree.map(lambda s: s.sharding, target))
        state, metrics = train_step(state, {}, jax.device_put(batch, sharding.batch_sharding(mesh)))
        results.append(jax.device_get((state["params"], state["batch_stats"], metrics)))
    moved = [np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (variables["params"], results[0][0])), strict=True)]
    assert np.mean(moved) > 0.8, (name, np.mean(moved))
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        worst = float(np.max(np.abs(a - b))) / max(float(np.max(np.abs(a))), 1e-2)
        assert worst <= 2e-5, (name, a.shape, worst)
    print(name, "equal")
"""

# Towers that learn; M-FLAG's is frozen, has BatchNorm in its heads and a loss of products over the batch.
TWO_TOWERS = """
texts = test_two_towers.tokens(B)
texts["has_report"], texts["report_hash"] = np.arange(B) % 5 != 0, np.arange(B, dtype=np.int32) % 13
vectors = {name: x for name, x in texts.items() if name not in ("report_ids", "report_mask")}
vectors["report_embedding"] = np.random.default_rng(1).normal(size=(B, 24)).astype(np.float32)
small = test_two_towers.small
cases = [
    ("clip", small("clip"), "dense", texts, BERT),
    ("siglip", small("siglip"), "ring", texts, BERT),
    ("convirt", small("convirt"), "dense", texts, BERT),
    ("m_flag", small("m_flag", trained=False, cache=True), "dense", vectors, BERT),
]
"""

# Methods that compare parts, with texts that are missing or have no part, and identical ones.
LOCAL = """
def tiled(batch):
    more = {name: np.tile(x, (B // 4,) + (1,) * (x.ndim - 1)) for name, x in batch.items()}
    pixels = np.random.default_rng(2).integers(0, 256, more["image"].shape)
    return more | {"image": pixels.astype(np.uint8), "report_hash": np.arange(B, dtype=np.int32) % 13}

words = tiled(test_gloria.tokens())
sentences = test_lovt.tokens([3, 1, 0, 4, 2, 2, 1, 3] * 2) | {"report_hash": np.arange(B, dtype=np.int32) % 13}
both = {"image": np.repeat(sentences["image"], 2, axis=1)}
both["image"][:, 1] = both["image"][::-1, 1]
for section, shift in (("findings", 0), ("impression", 1)):
    turned = {name: np.roll(x, shift, axis=0) for name, x in sentences.items()}
    both |= {name.replace("report", section): x for name, x in turned.items() if "report" in name}
gloria = test_gloria.get("demo", **test_gloria.SMALL, **{"loss.local.images_per_tile": 2})
mgca = test_mgca.get("demo", **test_mgca.SMALL, **{"model.prototypes": 5, "model.features": 12})
cases = [
    ("gloria", gloria, "dense", words, test_gloria.BERT),
    ("mgca", mgca, "dense", words, BERT),
    ("lovt", test_lovt.small(), "ring", sentences, test_lovt.BERT),
    ("composed", test_composed.config(test_composed.TERMS), "dense", both, test_composed.BERT),
]
"""


@pytest.mark.devices
@pytest.mark.parametrize("cases", [TWO_TOWERS, LOCAL], ids=["two_towers", "local"])
def test_steps_of_every_method_do_not_depend_on_the_mesh(cases):
    assert tiny.run([sys.executable, "-c", STEPS.replace("CASES", cases)], devices=8).stdout.count("equal") == 4


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.make_data(tmp_path_factory.mktemp("data"))


# Four steps of eight cross the end of an epoch.
SHORT = {"data.train_split": "train[:20]", "log_examples": True, **tiny.MUON}
UNSCORED = {"final_evaluators": "()"}
IN_ORDER = {"steps out of order": 0, "repeated within an epoch": 0, "skipped within an epoch": 0}
TWO_OF_FOUR = ["bash", "launch/local_multiprocess.sh", "2", "--devices", "4", "--logs"]


@pytest.fixture(scope="module")
def one_device(data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("one")
    tiny.run(tiny.command(data, workdir, final_evaluators=tiny.ALL_EVALUATORS, **SHORT))
    return workdir


@pytest.mark.devices
def test_two_processes_equal_one_that_also_goes_on_with_their_run(data, one_device, tmp_path):
    # Two steps in two processes of four devices with sharded parameters, the rest in one process on one device.
    run, more = tmp_path / "run", {"total_steps": 2, "mesh.fsdp": 2, **SHORT, **UNSCORED}
    done = tiny.run([*TWO_OF_FOUR, str(tmp_path / "logs"), "--", *tiny.command(data, run, **more)])
    assert "8 cpu in 2 process(es)" in done.stdout
    done = tiny.run(tiny.command(data, run, **SHORT, **UNSCORED))
    assert "resume    step 2" in done.stdout
    got, expected = tiny.losses(run), tiny.losses(one_device)
    assert got.keys() == expected.keys() == {1, 2, 3, 4}
    for step, loss in expected.items():
        assert got[step] == pytest.approx(loss, rel=1e-5), step
    found = tiny.order(run)
    assert found == tiny.order(one_device)
    assert (found["records consumed"], found["epochs"], found["not where the seed puts them"]) == (32, 2, 0)
    assert found | IN_ORDER == found
    account = json.loads((run / "goodput.json").read_text())
    assert (account["attempts"], account["step"], account["lost_steps"], account["done"]) == (2, 4, 0, True)


@pytest.mark.devices
def test_resume_on_devices_that_do_not_divide_the_batch(data, one_device, tmp_path):
    run = shutil.copytree(one_device, tmp_path / "run")
    done = tiny.run(tiny.command(data, run, **SHORT), devices=3, check=False)
    assert done.returncode == 2
    assert "batch_size=8 is not divisible by the 3 devices" in done.stderr
    assert "A run that began with it goes on with another number of devices: 1, 2, 4, 8." in done.stderr
    done = tiny.run(tiny.command(data, run, **SHORT, **{"mesh.fsdp": 3}), devices=4, check=False)
    assert done.returncode == 2
    assert "mesh.data=-1 x mesh.fsdp=3 does not make 4 devices" in done.stderr
    assert "a mesh.fsdp that divides 4: 1, 2, 4." in done.stderr


@pytest.mark.devices
def test_eight_devices_resume_bit_identically(data, tmp_path):
    whole, again, more = tmp_path / "whole", tmp_path / "again", {**UNSCORED, **tiny.MUON}
    tiny.run(tiny.command(data, whole, **more), devices=8)
    shutil.copytree(whole, again)
    shutil.rmtree(again / "checkpoints" / "4")
    assert "resume    step 2" in tiny.run(tiny.command(data, again, **more), devices=8).stdout
    expected, got = tiny.parameters(whole, 4), tiny.parameters(again, 4)
    for name, value in expected.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)


@pytest.mark.devices
def test_two_processes_train_a_text_tower_as_one_does(data, tmp_path):
    # LoVT's batches carry tokens and the sentences that they belong to; every process reads its own share of them.
    text = {
        "text.max_sentences": 6,
        "model.head.image_hidden": 16,
        "model.head.text_hidden": 16,
        "optimizer.rates": "()",
    }
    more = {"method": "lovt", "total_steps": 3, **text, **SHORT, **UNSCORED}
    tiny.run(tiny.command(data, tmp_path / "one", **more))
    tiny.run([*TWO_OF_FOUR, str(tmp_path / "logs"), "--", *tiny.command(data, tmp_path / "two", **more)])
    expected, got = tiny.losses(tmp_path / "one"), tiny.losses(tmp_path / "two")
    assert got.keys() == expected.keys() == {1, 2, 3}
    for step, loss in expected.items():
        assert got[step] == pytest.approx(loss, rel=1e-5), step
    first, last = (tiny.parameters(tmp_path / "two", step) for step in (2, 3))
    towers = [name for name in first if "text_tower" in name and "layer_0" in name and "params" in name]
    assert any(np.any(first[name] != last[name]) for name in towers), towers


@pytest.mark.devices
def test_two_processes_score_a_checkpoint_as_one_does(data, one_device, tmp_path):
    run = shutil.copytree(one_device, tmp_path / "run")
    scoring = tiny.command(data, run, "--mode", "eval", final_evaluators=tiny.ALL_EVALUATORS, **SHORT)
    tiny.run([*TWO_OF_FOUR, str(tmp_path / "logs"), "--", *scoring])
    got, expected = (json.loads((folder / "scores.json").read_text()) for folder in (run, one_device))
    assert len(got["scores"]) == len(expected["scores"]) > 50
    for row, twin in zip(got.pop("scores"), expected.pop("scores"), strict=True):
        assert row["name"] == twin["name"]
        for field in ("value", "random_init", "raw_pixels", "count"):
            if twin[field] is None:  # a score without this baseline
                assert row[field] is None, (row["name"], field)
            else:
                # The rounding of a map may move a pixel over the threshold of its mask.
                rel = 1e-3 if "/miou/" in row["name"] else 1e-4
                assert row[field] == pytest.approx(twin[field], rel=rel, abs=1e-6), (row["name"], field)
    assert got == expected


@pytest.mark.devices
def test_batch_that_does_not_fit_the_devices(data, tmp_path):
    done = tiny.run(tiny.command(data, tmp_path, batch_size=12), devices=8, check=False)
    assert done.returncode != 0
    assert "batch_size=12 is not divisible by the 8 devices" in done.stderr
    assert "8 or 16" in done.stderr
    assert "Traceback" not in done.stderr
