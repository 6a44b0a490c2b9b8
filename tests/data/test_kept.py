"""Records that stay in memory."""

import pickle
import threading

import numpy as np
import pytest

from medvlp_jax.data import images, pipeline, preprocess
from medvlp_jax.data.kept import KeptSource

SIDE = 256


class Records:
    """Six records, and how often each was read."""

    name, split = "made", "train"

    def __init__(self):
        self.read = [0] * 6

    def __len__(self):
        return len(self.read)

    def __getitem__(self, index):
        self.read[index] += 1
        image = np.random.default_rng(index).integers(0, 256, (SIDE, SIDE), np.uint8)
        data = b"no image" if index == 5 else images.encode_png(image)
        return {"image": data, "lung_mask": b"", "masks": {"mask": []}, "labels": np.full(14, index, np.int8)}


class Whole(Records):
    """The five records that are whole."""

    def __init__(self):
        self.read = [0] * 5


def batches(source, count):
    augment = preprocess.build("decode|views(2, size=32, rotate=5, contrast=0.2)")
    stream = pipeline.train_batches(source, augment, batch_size=2, seed=3, num_threads=2)
    return [next(stream) for _ in range(count)]


def test_batches_are_those_of_the_source_and_records_are_read_once():
    records = Whole()
    for plain, kept in zip(batches(Whole(), count=9), batches(KeptSource(records, 1), count=9), strict=True):
        assert plain.keys() == kept.keys()
        for name in plain:
            np.testing.assert_array_equal(plain[name], kept[name])
    assert max(records.read) <= 2  # twice only where two threads met


def test_what_does_not_fit_is_read_every_time():
    records = Whole()
    source = KeptSource(records, 0)
    for _ in range(3):
        assert source[1]["image"].shape == (SIDE, SIDE)
    assert records.read[1] == 3
    held = KeptSource(records, 1)
    held._left = 2 * (SIDE * SIDE + 8192)
    for _ in range(3):
        for index in range(5):
            held[index]
    assert [n - (3 if i == 1 else 0) for i, n in enumerate(records.read)] == [1, 1, 3, 3, 3]


def test_kept_images_cannot_be_changed():
    image = KeptSource(Whole(), 1)[0]["image"]
    with pytest.raises(ValueError, match="read-only"):
        image[0, 0] = 1


def test_a_damaged_image_is_named():
    with pytest.raises(pipeline.RecordError, match=r"'made'.*record 5: .*damaged"):
        batches(KeptSource(Records(), 1), count=30)


def test_a_copy_starts_empty_with_the_whole_budget():
    source = KeptSource(Whole(), 1)
    source[0], source[1]
    copy = pickle.loads(pickle.dumps(source))
    assert not copy._kept
    assert copy._left == 2**20
    np.testing.assert_array_equal(copy[0]["image"], source[0]["image"])


def test_several_threads_keep_the_budget():
    source = KeptSource(Whole(), 1)
    threads = [threading.Thread(target=lambda: [source[i] for i in range(5)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(source._kept) == 5
    assert all(source[i]["labels"][0] == i for i in range(5))


def test_a_negative_budget_is_refused():
    with pytest.raises(ValueError, match=r"data\.memory_mib=-1 must be 0"):
        KeptSource(Whole(), -1)
