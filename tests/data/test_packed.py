"""Compact lists, and shuffling on disk in the order of TFDS."""

import sys

import numpy as np
import pytest

from medvlp_jax.data import shuffling
from medvlp_jax.data.packed import Packed, pack, unpack

ROW = {
    "split": "train",
    "study_id": "s5",
    "labels": {"Edema": 1, 3: -1},
    "boxes": [[0.5, 1.0]],
    "text": "é",
    "data": b"\0",
}


@pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 1000])
def test_a_packed_list_gives_back_what_was_put_in(count):
    rows = [{**ROW, "row": number} for number in range(count)]
    packed = Packed(rows[: count // 2])
    for row in rows[count // 2 :]:
        packed.append(row)
    assert len(packed) == count
    assert list(packed) == list(packed) == rows


@pytest.mark.parametrize("count", [0, 1, 256, 600])
def test_a_packed_list_is_changed_and_emptied(count):
    packed = Packed({"row": number} for number in range(count))
    for row in packed.edit():
        row["row"] *= 2
    assert [row["row"] for row in packed] == list(range(0, 2 * count, 2))
    if count:
        assert (packed[0], packed[-1]) == ({"row": 0}, {"row": 2 * count - 2})
    with pytest.raises(IndexError):
        packed[count]
    assert [row["row"] for row in packed.drain()] == list(range(0, 2 * count, 2))
    assert (len(packed), list(packed)) == (0, [])


def test_a_packed_list_is_small():
    digests = np.random.default_rng(0).bytes(32 * 4 * Packed.BLOCK).hex()

    def row(number):
        digest = digests[64 * number : 64 * number + 64]
        ids = {"patient_id": f"p{number}", "study_id": f"s{number}", "image_id": digest[:40]}
        return {"split": "train", **ids, "file": f"files/p{number}/s{number}/{digest[:40]}.jpg", "sha256": digest}

    packed = Packed(map(row, range(4 * Packed.BLOCK)))
    assert sum(map(sys.getsizeof, packed._blocks)) / len(packed) < 150


def test_packing_other_values():
    assert unpack(pack([(1, "a")])) == [[1, "a"]]
    with pytest.raises(TypeError):
        pack([{1, 2}])


tfds = pytest.importorskip("tensorflow_datasets")
from tensorflow_datasets.core import shuffle  # noqa: E402


def records(count, seed=0):
    rng = np.random.default_rng(seed)
    return [(f"image-{n}", rng.bytes(int(rng.integers(0, 300)))) for n in range(count)]


def shuffled(kind, folder, rows):
    made = kind(folder, "train")
    for key, data in rows:
        made.add(key, data)
    return made, list(made)


@pytest.mark.parametrize("buffer", [1, 20_000, 2**20])
def test_same_order_as_tfds(tmp_path, monkeypatch, buffer):
    monkeypatch.setattr(shuffling, "BUFFER", buffer)
    rows = records(700)
    theirs, expected = shuffled(shuffle.Shuffler, tmp_path, rows)
    ours, found = shuffled(shuffling.Shuffler, tmp_path, rows)
    assert found == expected
    assert (ours.size, ours.num_examples, ours.bucket_lengths) == (theirs.size, 700, theirs.bucket_lengths)
    assert list(tmp_path.iterdir()) == []  # the buckets are gone


def test_what_waits_in_memory_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(shuffling, "BUFFER", 50_000)
    monkeypatch.setattr(shuffling, "BUCKETS", 16)
    made = shuffling.Shuffler(tmp_path, "train")
    for key, data in records(3000):
        made.add(key, data)
        assert made._waiting_bytes <= 50_000 + 300
    buckets = [path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()]
    assert len(buckets) == 16
    assert sum(buckets) > 300_000


@pytest.mark.parametrize("buffer", [1, 2**20])
def test_repeated_keys_are_refused(tmp_path, monkeypatch, buffer):
    monkeypatch.setattr(shuffling, "BUFFER", buffer)
    with pytest.raises(shuffle.DuplicatedKeysError):
        shuffled(shuffling.Shuffler, tmp_path, [("a", b"1"), ("b", b"2"), ("a", b"3")])


def test_bounded_is_for_a_while_only(tmp_path):
    before = shuffle.Shuffler
    with shuffling.bounded():
        assert shuffle.Shuffler is shuffling.Shuffler
    assert shuffle.Shuffler is before
    with pytest.raises(ValueError, match="neither disable shuffling"):
        shuffling.Shuffler(tmp_path, "train", disable_shuffling=True)
