"""Checkpoints: round trips, other device counts, other models, unfinished steps, full disks."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medvlp_jax.checkpoint import CheckpointError, Checkpoints, disk_full

REPOSITORY = Path(__file__).resolve().parents[1]
META = {"examples_seen": 640, "seconds": 12.5, "method": "imitate", "batch_size": 64}


def make_state(value=1.0, width=3):
    value = float(value)
    params = {"trunk": {"kernel": jnp.full((4, width), value), "bias": jnp.zeros(width)}}
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(lambda step: 1e-3, mask=lambda p: p is not None))
    return {
        "params": params,
        "batch_stats": {},
        "opt_state": tx.init(params),
        "step": jnp.asarray(7, jnp.int32),
        "rng": jax.random.key_data(jax.random.key(3)),
        "half": jnp.full(5, value, jnp.bfloat16),
    }


def target_of(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def assert_same(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.fixture
def saved(tmp_path):
    """A folder with steps 1, 2 and 3, the value of a step being its number."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=3)
    for step in (1, 2, 3):
        checkpoints.save(step, make_state(step), META)
    checkpoints.close()
    return tmp_path / "checkpoints"


def test_round_trip_of_state_and_meta(saved):
    checkpoints = Checkpoints(saved)
    assert checkpoints.latest_step() == 3
    assert checkpoints.all_steps() == [1, 2, 3]
    assert checkpoints.meta(3) == META
    assert_same(checkpoints.restore(3, target_of(make_state())), make_state(3))
    assert_same(checkpoints.restore(2, make_state()), make_state(2))


def test_arrays_without_a_model(saved):
    arrays = Checkpoints(saved).restore_arrays(2)
    np.testing.assert_array_equal(arrays["params"]["trunk"]["kernel"], np.full((4, 3), 2.0, np.float32))
    assert all(isinstance(x, np.ndarray | np.generic | int) for x in jax.tree.leaves(arrays))


def test_empty_and_missing_folders(tmp_path):
    reader = Checkpoints(tmp_path / "missing")
    assert reader.latest_step() is None
    assert not (tmp_path / "missing").exists()
    writer = Checkpoints(tmp_path / "new", keep=1)
    assert writer.latest_step() is None
    assert writer.all_steps() == []


def test_only_the_newest_stay(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (10, 20, 30, 40):
        checkpoints.save(step, make_state(step), META)
    checkpoints.wait()
    assert checkpoints.all_steps() == [30, 40]
    checkpoints.close()
    assert {path.name for path in tmp_path.iterdir()} == {"30", "40"}
    again = Checkpoints(tmp_path, keep=1)
    again.save(50, make_state(50), META)
    again.close()
    assert Checkpoints(tmp_path).all_steps() == [50]


@pytest.mark.parametrize("keep", [0, -1])
def test_keeping_none(tmp_path, keep):
    with pytest.raises(ValueError, match=f"keep_checkpoints={keep} would keep none"):
        Checkpoints(tmp_path, keep=keep)


def test_a_step_is_written_once(saved):
    checkpoints = Checkpoints(saved, keep=3)
    checkpoints.save(3, make_state(99), {})
    checkpoints.wait()
    assert checkpoints.meta(3) == META
    with pytest.raises(CheckpointError, match=r"The checkpoint of step 0 was not written: .* holds the later step 3"):
        checkpoints.save(0, make_state(), {})


def test_part_of_the_state(saved):
    wanted = {"params": target_of(make_state())["params"]}
    checkpoints = Checkpoints(saved)
    assert_same(checkpoints.restore_partial(3, wanted), {"params": make_state(3)["params"]})
    with pytest.raises(CheckpointError, match=r"not in the model \(8\): batch_stats|not in the model"):
        checkpoints.restore(3, wanted)
    with pytest.raises(CheckpointError, match=r"not in the checkpoint \(1\): params/head/kernel"):
        checkpoints.restore_partial(3, {"params": {"head": {"kernel": jnp.zeros((2, 2))}}})


def test_another_model_is_listed(saved):
    other = make_state(width=5)
    other["params"]["head"] = {f"kernel{i}": jnp.zeros(2) for i in range(7)}
    del other["half"]
    with pytest.raises(CheckpointError) as caught:
        Checkpoints(saved).restore(3, other)
    message = str(caught.value)
    assert f"The checkpoint at step 3 in {saved} holds another model than the config describes." in message
    assert "not in the checkpoint (7): params/head/kernel0; " in message
    assert "; and 2 more" in message
    assert "not in the model (1): half" in message
    assert "other shape (6): " in message
    assert "params/trunk/kernel: checkpoint (4, 3), model (4, 5)" in message or "; and 1 more" in message
    assert "config.json" in message


def test_a_step_that_is_not_there(saved):
    checkpoints = Checkpoints(saved)
    for read in (checkpoints.meta, checkpoints.restore_arrays, lambda step: checkpoints.restore(step, make_state())):
        with pytest.raises(CheckpointError, match=r"no complete checkpoint of step 9. Known steps: 1, 2, 3"):
            read(9)


def test_leftovers_of_a_killed_save(saved, caplog):
    (saved / "9.orbax-checkpoint-tmp-1700000000" / "state").mkdir(parents=True)
    (saved / "8" / "state").mkdir(parents=True)
    (saved / "7").mkdir()
    (saved / "3" / "meta" / "metadata").unlink()
    reader = Checkpoints(saved)
    assert reader.all_steps() == [1, 2]
    assert reader.latest_step() == 2
    assert (saved / "8").exists(), "reading changes nothing"
    assert (saved / "9.orbax-checkpoint-tmp-1700000000").exists()

    writer = Checkpoints(saved, keep=3)
    with caplog.at_level("WARNING", "absl"):
        assert writer.latest_step() == 2
    assert "8.unfinished" in caplog.text
    assert {path.name for path in saved.glob("*.unfinished")} == {"3.unfinished", "7.unfinished", "8.unfinished"}
    writer.save(3, make_state(33), META)
    writer.close()
    assert not list(saved.glob("*tmp*"))
    assert_same(Checkpoints(saved).restore(3, make_state()), make_state(33))

    (saved / "3" / "_CHECKPOINT_METADATA").unlink()  # a second accident with the same step
    assert Checkpoints(saved, keep=3).latest_step() == 2
    assert (saved / "3.unfinished.1").exists()


def test_damaged_arrays_name_the_step_before(saved):
    for path in (saved / "3").rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(b"\0" * 16)
    checkpoints = Checkpoints(saved)
    with pytest.raises(CheckpointError, match=r"checkpoints/3 cannot be read: (?s:.)*go on from step 2"):
        checkpoints.restore(3, make_state())


def test_reading_never_writes(saved):
    with pytest.raises(CheckpointError, match="open for reading only"):
        Checkpoints(saved).save(4, make_state(), META)


def test_full_disk_at_once(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(1, make_state(), META)
    checkpoints.wait()

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoints._open(), "save", full)
    with pytest.raises(CheckpointError) as caught:
        checkpoints.save(2, make_state(), META)
    message = str(caught.value)
    assert "The checkpoint of step 2 could not be written" in message
    assert "no space left on the device" in message
    assert "Free space, lower keep_checkpoints, or move the run folder" in message
    assert checkpoints.all_steps() == [1]


def test_other_write_errors_keep_their_words(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep=2)

    def refused(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", "somewhere")

    monkeypatch.setattr(checkpoints._open(), "wait_until_finished", refused)
    with pytest.raises(CheckpointError, match=r"A checkpoint could not be written to .*PermissionError.*denied"):
        checkpoints.wait()


def test_disk_full_is_found_in_the_chain_of_causes():
    outer = RuntimeError("save failed")
    outer.__cause__ = OSError(errno.EDQUOT, "quota")
    assert disk_full(outer)
    assert disk_full(ValueError("RESOURCE_EXHAUSTED: writing: No space left on device"))
    loop = ValueError("a")
    loop.__context__ = KeyError("b")
    loop.__context__.__context__ = loop
    assert not disk_full(loop)
    assert not disk_full(None)


def test_full_disk_for_real(small_disk):
    noise = np.random.default_rng(0).normal  # does not compress
    checkpoints = Checkpoints(small_disk / "checkpoints", keep=5)
    small = {"kernel": jnp.asarray(noise(size=(64, 256)), jnp.float32)}
    checkpoints.save(1, small, META)
    checkpoints.wait()

    def save_too_much():  # the error may come from the save itself or from its background
        checkpoints.save(2, {"kernel": jnp.asarray(noise(size=(1024, 1024)), jnp.float32)}, META)
        checkpoints.wait()

    with pytest.raises(CheckpointError, match=r"no space left on the device\. Free space"):
        save_too_much()
    again = Checkpoints(small_disk / "checkpoints", keep=5)
    assert again.latest_step() == 1
    assert_same(again.restore(1, small), small)
    again.save(2, small, META)  # the leftovers are gone: there is space again
    again.close()
    assert Checkpoints(small_disk / "checkpoints").all_steps() == [1, 2]


OTHER_DEVICES = """
import sys
import jax, jax.numpy as jnp, numpy as np
from medvlp_jax import sharding
from medvlp_jax.checkpoint import Checkpoints

def state(mesh, value):
    params = {"kernel": np.arange(256 * 128, dtype=np.float32).reshape(256, 128) * value, "bias": np.ones(3) * value}
    return jax.device_put(params, sharding.parameter_sharding(params, mesh))

previous = 1
for value, (data, fsdp) in enumerate([(2, 4), (2, 2), (1, 1), (1, 8)], start=2):
    mesh = sharding.make_mesh(data, fsdp, jax.devices()[: data * fsdp])
    checkpoints = Checkpoints(sys.argv[1], keep=2)
    step = checkpoints.latest_step()
    if step:
        like = state(mesh, 0)
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        restored = checkpoints.restore(step, target)
        for a, b, c in zip(*map(jax.tree.leaves, (restored, state(mesh, previous), target)), strict=True):
            np.testing.assert_array_equal(a, b)
            assert a.sharding == c.sharding, (a.sharding, c.sharding)
            assert len(a.addressable_shards) == data * fsdp
    checkpoints.save(value, state(mesh, value), {"examples_seen": value})
    checkpoints.close()
    previous = value
print("steps", Checkpoints(sys.argv[1]).all_steps())
"""


@pytest.mark.devices
def test_eight_devices_then_four_then_one_then_eight(tmp_path):
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = subprocess.run(
        [sys.executable, "-c", OTHER_DEVICES, str(tmp_path)],
        cwd=REPOSITORY,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "steps [4, 5]" in done.stdout
