"""Mesh sizes, batch sizes, parameter placement and what joins several processes."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from medvlp_jax import sharding

REPOSITORY = Path(__file__).resolve().parents[1]
NAMES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "SLURM_NTASKS", "TPU_WORKER_HOSTNAMES")

EIGHT_DEVICES = """
import json
import jax, jax.numpy as jnp, numpy as np
from medvlp_jax import sharding

def error(f, *args, **kwargs):
    try:
        f(*args, **kwargs)
    except ValueError as e:
        return str(e)

def sizes(*args, **kwargs):
    return dict(sharding.make_mesh(*args, **kwargs).shape)

mesh = sharding.make_mesh(2, 4)
S = jax.ShapeDtypeStruct
def params():
    return {
        "dense": {"kernel": S((256, 512), jnp.float32), "bias": S((2**15,), jnp.float32)},
        "tall": {"kernel": S((3, 3, 1024, 64), jnp.float32)},
        "odd": {"kernel": S((513, 256), jnp.float32)},
        "prime": {"kernel": S((251, 257), jnp.float32)},
        "small": {"kernel": S((64, 64), jnp.float32)},
        "norm1": {"scale": S((2**16,), jnp.float32)},
        "stem": {"cls": S((1, 1, 2**16), jnp.float32)},
    }
tree = {
    "params": params(),
    "opt_state": ({"mu": params(), "count": S((), jnp.int32)},),
    "rng": S((2,), jnp.uint32),
}
placed = sharding.parameter_sharding(tree, mesh)
spec = lambda leaf: [axis for axis in leaf.spec]
x = jax.device_put(np.arange(16.0), sharding.batch_sharding(mesh))
kernel = jax.device_put(np.zeros((256, 512), np.float32), placed["params"]["dense"]["kernel"])
print(json.dumps({
    "all": sizes(), "fsdp": sizes(fsdp=4), "data": sizes(data=2, fsdp=-1), "both": sizes(4, 2),
    "given": sizes(devices=jax.devices()[:4]),
    "too_few": error(sizes, 3, 2), "too_many": error(sizes, 16, -1), "not_dividing": error(sizes, -1, 3),
    "batch": error(sharding.check_batch, 12, mesh),
    "tiny_batch": error(sharding.check_batch, 5, mesh, "eval_batch_size"),
    "negative": error(sharding.check_batch, -8, mesh), "zero": error(sharding.check_batch, 0, mesh),
    "fits": error(sharding.check_batch, 24, mesh),
    "specs": {name: spec(leaf["kernel"]) for name, leaf in placed["params"].items() if "kernel" in leaf},
    "replicated": [spec(leaf) for leaf in (
        placed["params"]["dense"]["bias"], placed["params"]["norm1"]["scale"], placed["params"]["stem"]["cls"],
        placed["opt_state"][0]["count"], placed["rng"])],
    "moments_follow": jax.tree.map(lambda s: spec(s), placed["opt_state"][0]["mu"])
        == jax.tree.map(lambda s: spec(s), placed["params"]),
    "batch_shards": sorted(shard.data.shape[0] for shard in x.addressable_shards),
    "kernel_shards": sorted({shard.data.shape for shard in kernel.addressable_shards}),
    "copies": len(jax.device_put(np.zeros(3), sharding.replicated(mesh)).addressable_shards),
}))
"""


@pytest.fixture(scope="module")
def eight():
    """What eight simulated devices say."""
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = subprocess.run(
        [sys.executable, "-c", EIGHT_DEVICES], cwd=REPOSITORY, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.devices
def test_sizes_left_over(eight):
    assert eight["all"] == {"data": 8, "fsdp": 1}
    assert eight["fsdp"] == {"data": 2, "fsdp": 4}
    assert eight["data"] == {"data": 2, "fsdp": 4}
    assert eight["both"] == {"data": 4, "fsdp": 2}
    assert eight["given"] == {"data": 4, "fsdp": 1}


@pytest.mark.devices
@pytest.mark.parametrize(
    ("case", "sizes"),
    [("too_few", "mesh.data=3 x mesh.fsdp=2"), ("too_many", "mesh.data=16 x mesh.fsdp=-1"),
     ("not_dividing", "mesh.data=-1 x mesh.fsdp=3")],
)  # fmt: skip
def test_sizes_that_do_not_fit(eight, case, sizes):
    assert sizes in eight[case]
    assert "8 devices" in eight[case]
    assert "Use mesh.data=-1 and a mesh.fsdp that divides 8: 1, 2, 4, 8." in eight[case]


@pytest.mark.parametrize("sizes", [(0, 1), (-2, 1), (1, 0), (-1, -1)])
def test_sizes_that_make_no_sense(sizes):
    with pytest.raises(ValueError, match=rf"mesh.data={sizes[0]}, mesh.fsdp={sizes[1]}: sizes are positive"):
        sharding.make_mesh(*sizes)


@pytest.mark.devices
def test_batch_messages(eight):
    assert eight["fits"] is None
    assert "batch_size=12 is not divisible by the 8 devices on mesh axes data=2 x fsdp=4" in eight["batch"]
    assert "Use a multiple of 8 (8 or 16)." in eight["batch"]
    assert eight["tiny_batch"].startswith("eval_batch_size=5 ")
    assert eight["tiny_batch"].endswith("(8).")
    assert eight["negative"].endswith("(8).")
    assert eight["zero"].endswith("(8).")


@pytest.mark.devices
def test_parameters_split_their_largest_axis_that_divides(eight):
    assert eight["specs"] == {
        "dense": [None, "fsdp"],
        "tall": [None, None, "fsdp", None],
        "odd": [None, "fsdp"],  # 513 is larger and does not divide by 4
        "prime": [],
        "small": [],
    }
    assert eight["kernel_shards"] == [[256, 128]]
    assert eight["moments_follow"]


@pytest.mark.devices
def test_norms_biases_counters_and_keys_stay_whole(eight):
    assert eight["replicated"] == [[]] * 5
    assert eight["copies"] == 8


@pytest.mark.devices
def test_batches_split_over_all_devices(eight):
    assert eight["batch_shards"] == [2] * 8


def test_one_device_replicates_everything():
    mesh = sharding.make_mesh(1, 1, jax.devices()[:1])
    placed = sharding.parameter_sharding({"kernel": jnp.zeros((512, 512))}, mesh)
    assert placed["kernel"].spec == PartitionSpec()


def test_rules_that_are_wrong():
    mesh = sharding.make_mesh(1, 1, jax.devices()[:1])
    tree = {"head": {"kernel": jnp.zeros((2, 2))}}
    with pytest.raises(ValueError, match=r"Unknown sharding rule 'columns'. Choose one of replicated, largest"):
        sharding.parameter_sharding(tree, mesh, [(".*", "columns")])
    with pytest.raises(ValueError, match="No sharding rule matches 'head/kernel'"):
        sharding.parameter_sharding(tree, mesh, [("trunk/.*", "replicated")])


@pytest.fixture
def joined(monkeypatch):
    """The calls of jax.distributed.initialize, in a clean environment."""
    calls = []
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **kwargs: calls.append((args, kwargs)))
    return calls


def test_single_process_joins_nobody(joined, tmp_path):
    sharding.initialize_processes(tmp_path, 5)
    assert joined == []


def test_processes_of_the_environment(joined, monkeypatch, tmp_path):
    for name, value in zip(NAMES, ("127.0.0.1:1234", "4", "3"), strict=False):
        monkeypatch.setenv(name, value)
    sharding.initialize_processes(tmp_path, 5)
    assert joined == [(("127.0.0.1:1234", 4, 3), {"initialization_timeout": 65})]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "value"), [("SLURM_NTASKS", "2"), ("TPU_WORKER_HOSTNAMES", "a,b")])
def test_clusters_that_jax_knows(joined, monkeypatch, name, value, tmp_path):
    monkeypatch.setenv(name, value)
    sharding.initialize_processes(tmp_path, 5)
    assert joined == [((), {"initialization_timeout": 65})]


@pytest.mark.parametrize(("name", "value"), [("SLURM_NTASKS", "1"), ("TPU_WORKER_HOSTNAMES", "localhost")])
def test_one_task_or_host_joins_nobody(joined, monkeypatch, name, value, tmp_path):
    monkeypatch.setenv(name, value)
    sharding.initialize_processes(tmp_path, 5)
    assert joined == []


def test_joined_processes_are_left_alone(joined, monkeypatch, tmp_path):
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    sharding.initialize_processes(tmp_path, 5)
    assert joined == []


def test_some_of_the_three_variables(joined, monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    with pytest.raises(ValueError, match="JAX_NUM_PROCESSES set, but JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID missing"):
        sharding.initialize_processes(tmp_path, 5)
    assert joined == []


@pytest.mark.parametrize(("count", "index"), [("two", "0"), ("2", "2"), ("2", "-1"), ("2", "1.0")])
def test_process_numbers_that_make_no_sense(joined, monkeypatch, count, index, tmp_path):
    for name, value in zip(NAMES, ("127.0.0.1:1234", count, index), strict=False):
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"JAX_NUM_PROCESSES='{count}', JAX_PROCESS_ID='{index}'"):
        sharding.initialize_processes(tmp_path, 5)
    assert joined == []


@pytest.mark.parametrize("seconds", [0, -5])
def test_a_wait_that_makes_no_sense(joined, tmp_path, seconds):
    with pytest.raises(ValueError, match=f"join_seconds={seconds} must be more than 0"):
        sharding.initialize_processes(tmp_path, seconds)


JOIN = "import sys; from medvlp_jax import sharding; sharding.initialize_processes(sys.argv[1], float(sys.argv[2]))"


def start(folder, index, count, seconds):
    """A process that joins `count - 1` others."""
    place = {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:1", "JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(index)}
    return subprocess.Popen(
        [sys.executable, "-c", JOIN, str(folder), str(seconds)],
        cwd=REPOSITORY,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **place},
        stderr=subprocess.PIPE,
        text=True,
    )


def test_processes_that_do_not_come_are_named(tmp_path):
    (tmp_path / "joining").mkdir()
    stale = tmp_path / "joining" / "2"  # of an earlier start
    stale.write_text("elsewhere")
    os.utime(stale, (1, 1))
    processes = [start(tmp_path, index, count=4, seconds=6) for index in (1, 3)]
    said = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [sharding.UNAVAILABLE] * 2, said
    host = socket.gethostname()
    for text in said:
        assert f"TimeoutError: 2 of 4 processes came within join_seconds=6 (1 on {host}, 3 on {host})." in text
        assert "Missing: 0, 2. See whether their hosts are up and what their logs say" in text
        assert "JAX_NUM_PROCESSES=4" in text
        assert "Check failure" not in text


def test_all_came_but_cannot_talk(tmp_path, monkeypatch):
    for index in range(2):
        (tmp_path / str(index)).write_text(f"host{index}")
    said = sharding._who_is_missing(tmp_path, 0, 2, "10.0.0.1:99", 300)
    assert "2 of 2 processes came within join_seconds=300 (0 on host0, 1 on host1)" in said
    assert "they did not reach each other at 10.0.0.1:99: is its port open between hosts?" in said


def test_a_roll_call_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(sharding, "ROLL_CALL_SECONDS", 0.0001)
    with sharding.roll_call(tmp_path / "joining", 0, 2, "", 60):
        shown = tmp_path / "joining" / "0"
        while not shown.exists():
            time.sleep(0.01)
        # It is renewed all the time, and others never see it empty.
        assert {shown.read_text() for _ in range(2000)} == {socket.gethostname()}
    assert list(tmp_path.iterdir()) == []


def test_a_batch_that_does_not_split_names_device_counts_for_a_run_that_has_begun():
    mesh = SimpleNamespace(devices=np.zeros(5), shape={"data": 5, "fsdp": 1})
    with pytest.raises(ValueError, match=r"batch_size=12 .*Use a multiple of 5 \(10 or 15\)\. .*: 1, 2, 3, 4, 6, 12\."):
        sharding.check_batch(12, mesh)
