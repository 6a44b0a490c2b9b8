"""Staged builds: chunk files, what makes them stale, rejections, failing and dying workers."""

import dataclasses
import functools
import multiprocessing
import os
from types import SimpleNamespace

import numpy as np
import pytest

from medvlp_jax.data import staging
from medvlp_jax.data.records import SOURCE
from medvlp_jax.data.staging import Plan, Rejection, Staging


@dataclasses.dataclass
class Config:
    name: str = "a"
    scale: int = 1
    version: str = "ignored"


def make_examples(item, config):
    if item == 3:
        raise Rejection("odd", row=item, item="three")
    if item == 5:
        return [Rejection("half", row=item), (f"k{item}", {"value": item * config.scale})]
    return [
        (
            f"k{item}",
            {
                "value": item * config.scale,
                "array": np.arange(item, dtype=np.float32).reshape(1, item),
                "scalar": np.int64(-item),
                "bytes": bytes([item]),
                "nested": [{"text": "é"}],
                SOURCE: {"patient_id": f"p{item}"},
            },
        )
    ]


def slow_to_fail(item, config):
    raise KeyError(item)


def leaves(item, config):
    if multiprocessing.parent_process() is not None:
        os._exit(3)
    return []


def run(items, store, config=None, make=make_examples):
    return list(staging.staged_examples("train", items, make, config or Config(), store))


def test_same_examples_with_and_without_files(tmp_path):
    plain, stored = Staging(), Staging(tmp_path / "s", workers=1, chunk=4)
    first, second = run(range(10), plain), run(range(10), stored)
    assert [key for key, _ in first] == [key for key, _ in second] == [f"k{i}" for i in range(10) if i != 3]
    for (_, a), (_, b) in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        assert SOURCE not in a
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
            assert np.asarray(a[name]).dtype == np.asarray(b[name]).dtype
    for store in (plain, stored):
        assert staging.count_reasons(store.rejections) == {"half": 1, "odd": 1}
        assert [(r.row, r.item) for r in store.rejections] == [(3, "three"), (5, "")]
        assert [source["patient_id"] for source in store.sources] == [f"p{i}" for i in range(10) if i not in (3, 5)]


def test_second_run_reuses_every_chunk(tmp_path):
    run(range(10), Staging(tmp_path, workers=1, chunk=4))
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = Staging(tmp_path, workers=1, chunk=4)
    run(range(10), again)
    assert (again.reused, again.made) == (3, 0)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    assert len(before) == 3


@pytest.mark.parametrize("change", ["config", "items", "damage", "truncation", "code"])
def test_what_makes_a_chunk_stale(tmp_path, change, monkeypatch):
    run(range(8), Staging(tmp_path, workers=1, chunk=4))
    first = tmp_path / "train-000000.msgpack"
    items, config = list(range(8)), Config(version="another")  # TFDS's own fields do not count
    if change == "config":
        config = Config(scale=2)
    elif change == "items":
        items[0] = 9
    elif change == "damage":
        data = bytearray(first.read_bytes())
        data[-1] ^= 1
        first.write_bytes(bytes(data))
    elif change == "truncation":
        first.write_bytes(first.read_bytes()[:20])
    else:
        monkeypatch.setattr(staging, "code_digest", lambda make: "edited")
    again = Staging(tmp_path, workers=1, chunk=4)
    values = [example["value"] for _, example in run(items, again, config)]
    assert (again.reused, again.made) == {"config": (0, 2), "code": (0, 2)}.get(change, (1, 1))
    assert values == [item * config.scale for item in items if item != 3]


def test_workers_make_the_same_files(tmp_path):
    one, two = Staging(tmp_path / "1", workers=1, chunk=3), Staging(tmp_path / "2", workers=2, chunk=3)
    run(range(10), one)
    run(range(10), two)
    names = sorted(path.name for path in one.directory.iterdir())
    assert names == sorted(path.name for path in two.directory.iterdir())
    assert all((one.directory / n).read_bytes() == (two.directory / n).read_bytes() for n in names)
    one.remove()
    assert not one.directory.exists()


def test_an_error_keeps_the_finished_chunks(tmp_path):
    def fails_late(item, config):
        if item == 6:
            raise KeyError(item)
        return make_examples(item, config)

    with pytest.raises(KeyError):
        run(range(8), Staging(tmp_path, workers=1, chunk=4), make=fails_late)
    assert [path.name for path in tmp_path.iterdir()] == ["train-000000.msgpack"]


def test_an_error_in_a_worker_arrives(tmp_path):
    with pytest.raises(KeyError):
        run(range(8), Staging(tmp_path, workers=2, chunk=4), make=slow_to_fail)


def test_a_dead_worker_is_explained(tmp_path):
    with pytest.raises(RuntimeError, match="A worker process died"):
        run(range(8), Staging(tmp_path, workers=2, chunk=4), make=leaves)


def test_full_disk_leaves_no_half_file(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        run(range(4), Staging(tmp_path, workers=1))
    assert list(tmp_path.iterdir()) == []


def test_values_that_cannot_be_stored_are_named(tmp_path):
    with pytest.raises(TypeError, match="holds a set"):
        run([1], Staging(tmp_path, workers=1), make=lambda item, config: [(1, {"a": {2}})])


def test_split_generators(tmp_path):
    builder = SimpleNamespace(staging=Staging(tmp_path, workers=1), builder_config=Config())
    plan = Plan({"train": [1, 2], "validation": [3], "test": [4]}, [Rejection("planned", row=9)], {"fact": 1})
    generators = staging.split_generators(builder, plan, make_examples)
    assert {split: [key for key, _ in examples] for split, examples in generators.items()} == {
        "train": ["k1", "k2"],
        "test": ["k4"],
    }
    assert staging.count_reasons(builder.staging.rejections) == {"odd": 1, "planned": 1}
    assert builder.staging.provenance == {"fact": 1}
    assert sorted(source["split"] for source in builder.staging.sources) == ["test", "train", "train"]


def test_nothing_to_build():
    builder = SimpleNamespace(staging=None, builder_config=Config())
    with pytest.raises(ValueError, match="'odd': 1"):
        staging.split_generators(builder, {"train": [3]}, make_examples)


def test_code_digest_sees_through_partial():
    assert staging.code_digest(functools.partial(make_examples, config=None)) == staging.code_digest(make_examples)


def test_settings():
    with pytest.raises(ValueError, match="workers=0"):
        Staging(workers=0)
    with pytest.raises(ValueError, match="chunk=0"):
        Staging(chunk=0)
    assert staging.config_dict(Config()) == {"name": "a", "scale": 1}
