"""What a step costs: counting, reading the compiler, the plan of a small run; a TPU compile where there is libtpu."""

import importlib.util
import json
import sys

import jax
import jax.numpy as jnp
import pytest
import tiny
from jax import lax

from configs import imitate
from medvlp_jax import text_tower
from medvlp_jax.encoders.resnet import ResNet
from medvlp_jax.plan import costs, search, topology
from medvlp_jax.plan.compiled import Cost, collectives, count_flops, largest_arrays


def test_flops_of_products_and_loops():
    def three_products(x, y):
        return lax.scan(lambda c, _: (c @ y, None), x, length=3)[0]

    jaxpr = jax.make_jaxpr(jax.jit(three_products))(jnp.ones((4, 8)), jnp.ones((8, 8))).jaxpr
    assert count_flops(jaxpr) == 3 * 2 * 4 * 8 * 8
    assert count_flops(jaxpr, loops=False) == 2 * 4 * 8 * 8


def test_flops_of_resnet50_are_those_of_the_literature():
    model, image = ResNet(depth="50"), jax.ShapeDtypeStruct((8, 224, 224, 3), "float32")
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.ones(image.shape), train=False))
    jaxpr = jax.make_jaxpr(lambda v, x: model.apply(v, x, train=False))(variables, image).jaxpr
    assert count_flops(jaxpr) == pytest.approx(8 * 2 * 4.09e9, rel=0.01)  # 4.09 G multiplications
    assert "float32[8, 112, 112, 64]" in largest_arrays(jaxpr, chips=1)[0]


HLO = """
  %all-reduce.1 = (f32[10]{0}, bf16[2,8]{1,0}) all-reduce(%a, %b), channel_id=1, replica_groups={}
  %all-reduce.2 = (f32[10]{0}, bf16[2,8]{1,0}) all-reduce(%c, %d), channel_id=1, replica_groups={}
  %ag = (f32[4]{0}, f32[16]{0}) all-gather-start(%e), channel_id=2
  %agd = f32[16]{0} all-gather-done(%ag)
  %cp = (f32[8]{0}, f32[8]{0}, u32[], u32[]) collective-permute-start(%f), channel_id=3
  %all-reduce-scatter.7 = f32[5]{0} fusion(%g), kind=kCustom, calls=%x
"""


def test_collectives_count_once_per_channel():
    assert collectives(HLO) == {
        "all-gather": (1, 64),
        "all-reduce": (1, 40 + 32),
        "reduce-scatter": (1, 0),
        "collective-permute": (1, 32),
    }


def test_network_counts_a_reduction_twice():
    compiled = Cost(0, 0, 0, 0.0, 0.0, None, 1.0, {"all-reduce": (1, 1000), "all-gather": (2, 500)})
    assert costs.network_seconds(compiled, 4, 100.0) == pytest.approx(0.75 * (2 * 1000 + 500) / 100)


def test_unknown_topologies_list_the_known():
    for name in ("v5e", "v9:4x4", "v5e:4x4*", "v5e:4x4*0"):
        with pytest.raises(ValueError, match=r"KIND:SHAPE.*v5e: 2x2, 2x4, 4x4"):
            topology.describe(name)


def test_what_does_not_fit_is_told_from_other_errors():
    error = RuntimeError(
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (19.54G) exceeds "
        "available HBM (15.75G)."
    )
    assert topology.too_large(error).endswith("exceeds available HBM (15.75G)")
    assert topology.too_large(RuntimeError("INTERNAL: something else")) is None


@pytest.fixture
def here():
    """This process's CPU as a slice of one chip, so that the whole path runs without the TPU compiler."""
    return topology.Topology("here", "v5e", topology.CHIPS["v5e"], jax.devices()[:1])


@pytest.fixture
def config():
    config = imitate.get_config("demo").unlock()
    config.update_from_flattened_dict({"image.size": 64, "batch_size": 8, "total_steps": 100})
    return config


def test_the_plan_of_a_small_run(here, config):
    plan = costs.make_plan(config, here, examples=1000, text_width=16, price=2.0)
    assert plan.fits is None
    assert plan.memory["optimizer"] == pytest.approx(plan.memory["parameters"], rel=0.05)  # Muon's one moment
    assert plan.memory["total"] >= sum(plan.memory[part] for part in ("parameters", "optimizer", "batch"))
    assert plan.step_seconds == max(plan.bounds.values())
    assert plan.hours == pytest.approx(plan.step_seconds * 100 / 3600)
    assert plan.price == pytest.approx(2.0 * plan.chip_hours)
    # The compiler counts what it runs, forward and backward, elementwise work too; products dominate both.
    assert 0.5 < plan.compiled.flops / plan.model_flops < 2.0


def cached_step(config):
    """As far as counting needs it: nothing is lowered."""
    return costs.Lowered(None, None, None, {}, {}, costs.batch_structs(config, 16), None, None)


def test_the_text_tower_inside_the_step(here, config, tmp_path):
    """From its config.json alone; its products count once, forward."""
    cached_flops = costs.model_flops(config, cached_step(config))
    tower = tiny.make_tower(tmp_path) / "tower"
    (tower / "model.safetensors").unlink()
    config.update_from_flattened_dict({"text.cache": False, "text.weights": str(tower), "text.max_length": 64})
    live = costs.make_plan(config, here, examples=1000, text_width=768)  # the width of vectors that are not there
    variables = json.loads((tower / "config.json").read_text())
    assert live.memory["text tower"] > 4 * variables["vocab_size"] * 16
    assert live.memory["total"] > live.memory["text tower"] + live.memory["optimizer"]
    rows, width, inner = 2 * 8 * 64, 16, 32  # of both sections
    layer = 2 * rows * (4 * width * width + 2 * width * inner) + 2 * 2 * rows * 64 * width
    assert live.model_flops - cached_flops == pytest.approx(layer, rel=0.01)


def test_flops_are_those_of_the_model_in_any_dtype(config):
    """A trunk of bottlenecks in bfloat16 takes more products than its definition; they are not counted."""
    counted = []
    for dtype in ("float32", "bfloat16"):
        config.update_from_flattened_dict(
            {"model.dtype": dtype, "model.trunk.block": "bottleneck", "model.read.tokens": 352}
        )
        counted.append(costs.model_flops(config, cached_step(config)))
    assert counted[0] == counted[1]
    assert count_flops(costs.loss_jaxpr(config, cached_step(config))) > counted[0] / 3


def test_text_towers_that_are_not_here(here, config, tmp_path):
    config.text.cache = False
    said = []
    config.text.weights = "nobody/no-such-bert"
    assert text_tower.outline(config, said.append).width == 768
    assert "planned with the sizes of BERT-base" in said[0]
    config.text.weights = str(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="neither an existing path nor a hub repository"):
        costs.make_plan(config, here, examples=1000, text_width=16)
    config.text.weights, config.data.dir = "phantom", str(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"python -m medvlp_jax.pretrain_text --data cxr_phantom"):
        costs.make_plan(config, here, examples=1000, text_width=16)


def test_a_batch_that_no_schedule_fits_says_what_was_tried(here, config):
    config.update_from_flattened_dict({"pairs.schedule": "auto", "pairs.budget_mib": 0})
    with pytest.raises(
        ValueError, match=r"(?s)8 x 8 on 1 device.*dense .* MiB, chunked .* MiB, ring .*pairs.budget_mib"
    ):
        costs.make_plan(config, here, examples=1000, text_width=16)


def test_without_the_compiler(monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"v5e:4x4 needs the TPU compiler: pip install .*\.\[tpu\]"):
        topology.describe("v5e:4x4")


def test_largest_batch_and_remedies(here, config, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked = []

    def needs(config, slice_, **settings):
        asked.append((config.batch_size, config.micro_batches))
        size = 10 * config.batch_size // config.micro_batches
        return size if size <= 1000 else None

    monkeypatch.setattr(search, "bytes_per_chip", needs)
    assert search.largest_batch(config, here, examples=1, text_width=16) == 96  # within an eighth of 100
    config.batch_size = 320
    found = search.remedies(config, here, examples=1, text_width=16, say=lambda line: None)
    assert found["micro_batches=2"] is None
    assert found["micro_batches=4"] == 800
    assert "micro_batches=8" not in found
    assert found["model.trunk.remat=True"] is None


def test_what_was_compiled_is_remembered(here, config, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = search.bytes_per_chip(config, here, examples=1, text_width=16)
    monkeypatch.setattr(search.costs, "lower_step", lambda *a, **k: pytest.fail("compiled again"))
    assert search.bytes_per_chip(config, here, examples=1, text_width=16) == first > 0
    # So is what a plan has compiled: a search for the largest batch begins with it.
    config.batch_size = 16
    search.remember(config, here, None, text_width=16)
    config.batch_size = 8
    assert search.largest_batch(config, here, examples=1, text_width=16) == 8


def test_bad_input_is_named(tmp_path):
    command = [sys.executable, "-m", "medvlp_jax.plan", "--config", "configs/imitate.py:demo"]
    command.append(f"--config.data.dir={tmp_path}")
    done = tiny.run([*command, "--topology", "v5"], check=False)
    assert done.returncode
    assert "ValueError: Unknown topology 'v5'" in done.stderr
    done = tiny.run([*command, "--topology", "v5e:2x2", "--price=v5e"], check=False)
    assert "must be KIND=NUMBER" in done.stderr


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="the extra tpu (libtpu) is not installed")
def test_the_demo_compiled_for_two_slices():
    """Only the data axis crosses the data-centre network between them."""
    command = [
        sys.executable,
        "-m",
        "medvlp_jax.plan",
        "--config",
        "configs/imitate.py:demo",
        "--topology",
        "v5e:2x2*2",
    ]
    done = tiny.run([*command, "--json", "--text_width=16", "--config.batch_size=64", "--examples=640"])
    plan = json.loads(done.stdout.splitlines()[-1])
    assert plan["chips"] == 8
    assert plan["fits"] is None
    assert plan["memory"]["total"] < plan["memory_limit"]
    assert plan["compiled"]["collectives"]["all-reduce"][0] > 10
    assert 0 < plan["mfu"] < 1
