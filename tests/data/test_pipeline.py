"""Order, slices, resume, padding, errors, and the way onto devices."""

import subprocess
import sys
import textwrap
import threading
import time

import cv2
import jax
import numpy as np
import pytest

from medvlp_jax.data import pipeline, preprocess
from medvlp_jax.data.pipeline import RecordError, device_prefetch, eval_batches, train_batches

GOLDEN_ORDER = [2, 0, 3, 4, 1, 5]
GOLDEN_DRAWS = [0.6000053891724817, 0.2635191081124634]


class Records:
    """Small pictures of one grey, 50 + index."""

    name, split = "toy", "train"

    def __init__(self, size, damaged=()):
        self.size, self.damaged, self.read = size, set(damaged), []

    def __len__(self):
        return self.size

    def __getitem__(self, i):
        if not 0 <= i < self.size:
            raise IndexError(i)
        self.read.append(i)
        image = cv2.imencode(".png", np.full((12, 12), 50 + i, np.uint8))[1].tobytes()
        return {
            "image": b"secret pixels" if i in self.damaged else image,
            "findings": f"finding {i % 3}",
            "impression": "",
            "has_findings": np.bool_(True),
            "has_impression": np.bool_(False),
            "labels": np.full(14, i % 2, np.int8),
            "patient_id": np.int64(i),
            "study_id": np.int64(i),
        }


AUGMENT = preprocess.build("decode|views(2, size=8, crop_from=12, rotate=30, brightness=0.3)")
EVALUATE = preprocess.build("decode|center(12)")


def take(iterator, count):
    try:
        return [next(iterator) for _ in range(count)]
    finally:
        iterator.close()


def train(size=10, batch_size=4, seed=3, count=8, **arguments):
    return take(train_batches(Records(size), AUGMENT, batch_size=batch_size, seed=seed, **arguments), count)


def assert_same(a, b):
    assert len(a) == len(b)
    for one, two in zip(a, b, strict=True):
        assert one.keys() == two.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], two[name], err_msg=name)


def test_batches_are_stacked_examples():
    batch = train(count=1)[0]
    assert batch["image"].shape == (4, 2, 8, 8, 1)
    assert batch["image"].dtype == np.uint8
    assert batch["labels"].shape == (4, 14)
    assert batch["index"].dtype == np.int64
    np.testing.assert_array_equal(batch["patient_hash"], batch["index"])


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_thread_count_does_not_matter(threads):
    assert_same(train(num_threads=threads), train(num_threads=3, prefetch=1))


@pytest.mark.parametrize("count", [2, 4])
def test_slices_of_processes_make_up_the_global_batch(count):
    whole = train()
    parts = [train(process_index=p, process_count=count) for p in range(count)]
    joined = [{name: np.concatenate([b[name] for b in batches]) for name in batches[0]} for batches in zip(*parts)]  # noqa: B905
    assert_same(joined, whole)


@pytest.mark.parametrize("done", [1, 4, 5])
def test_resume_from_the_example_count(done):
    assert_same(train(start_example=4 * done, count=8 - done), train()[done:])


def test_resume_with_another_batch_size_continues_the_sequence():
    flat = np.concatenate([b["index"] for b in train(count=9)])
    later = train(start_example=8, batch_size=7, count=4)
    np.testing.assert_array_equal(np.concatenate([b["index"] for b in later]), flat[8:36])


def test_every_epoch_holds_each_record_once_in_a_new_order():
    flat = np.concatenate([b["index"] for b in train(size=10, batch_size=4, count=10)]).reshape(4, 10)
    np.testing.assert_array_equal(np.sort(flat, axis=1), np.tile(np.arange(10), (4, 1)))
    assert len({tuple(epoch) for epoch in flat}) == 4
    same = np.concatenate([b["index"] for b in train(count=5, reshuffle=False)]).reshape(2, 10)
    np.testing.assert_array_equal(same[0], same[1])
    np.testing.assert_array_equal(same[0], flat[0])


def test_augmentation_differs_between_epochs_and_seeds():
    first, second = train(size=4, count=2)
    a, b = (batch["image"][np.argsort(batch["index"])] for batch in (first, second))
    assert (a != b).any(axis=(1, 2, 3, 4)).all()
    assert (train(seed=4, count=1)[0]["index"] != train(count=1)[0]["index"]).any()


def test_permutation_and_example_rng_depend_on_their_arguments_alone():
    np.testing.assert_array_equal(pipeline.permutation(5, 2, 6), pipeline.permutation.__wrapped__(5, 2, 6))
    draws = {pipeline.example_rng(*key).random() for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]}
    assert len(draws) == 4
    # Golden numbers: a change here breaks the resumption of every run.
    assert pipeline.permutation(5, 2, 6).tolist() == GOLDEN_ORDER
    np.testing.assert_allclose(pipeline.example_rng(7, 1, 3).random(2), GOLDEN_DRAWS)


def test_evaluation_reads_every_record_once_and_pads():
    batches = list(eval_batches(Records(10), EVALUATE, batch_size=4))
    assert len(batches) == 3
    index, mask = (np.concatenate([b[name] for b in batches]) for name in ("index", "_mask"))
    assert mask.tolist() == [True] * 10 + [False] * 2
    assert index[mask].tolist() == list(range(10))
    padding = {name: value[2:] for name, value in batches[-1].items()}
    assert all((value == 0).all() for value in padding.values())
    assert batches[-1]["image"].shape == (4, 1, 12, 12, 1)
    assert (batches[1]["image"][0] == 54).all()


def test_evaluation_has_the_same_number_of_batches_on_every_process():
    parts = [list(eval_batches(Records(5), EVALUATE, batch_size=4, process_index=p, process_count=4)) for p in range(4)]
    assert [len(part) for part in parts] == [2] * 4
    masks = np.array([[b["_mask"][0] for b in part] for part in parts])
    assert masks[:, 0].all()
    assert masks[:, 1].tolist() == [True, False, False, False]


def test_only_the_local_slice_is_read():
    source = Records(100)
    take(train_batches(source, AUGMENT, batch_size=8, seed=0, process_count=4, num_threads=1, prefetch=2), 3)
    expected = pipeline.permutation(0, 0, 100).reshape(-1)[:96].reshape(12, 4, 2)[:, 0].ravel()
    assert set(source.read) <= set(expected)
    assert len(source.read) <= 3 * 2 + 2 + 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"batch_size": 10, "process_count": 4}, "batch_size=10 .* among 4 processes. Use a multiple of 4: 8 or 12"),
        ({"batch_size": 3, "process_count": 4}, "Use a multiple of 4: 4\\."),
        ({"batch_size": 0}, "batch_size=0"),
        ({"process_index": 2, "process_count": 2}, "process_index=2 must be from 0 to process_count - 1 = 1"),
        ({"start_example": -4}, "start_example=-4"),
        ({"num_threads": 0}, "num_threads=0"),
        ({"size": 0}, "'toy', split 'train' has no records"),
    ],
)
def test_sizes_that_do_not_fit(arguments, words):
    with pytest.raises(ValueError, match=words):
        train(**{"batch_size": 4, **arguments})


def test_damaged_record_is_named_without_its_content():
    batches = train_batches(Records(6, damaged={2}), AUGMENT, batch_size=6, seed=0)
    with pytest.raises(
        RecordError, match=r"data set 'toy', split 'train', record 2: .*\(13 bytes\) is damaged"
    ) as info:
        next(batches)
    assert "secret" not in str(info.value)
    batches.close()


def test_examples_of_different_shapes_are_explained():
    batches = train_batches(
        [{"image": cv2.imencode(".png", np.zeros((4, n), np.uint8))[1].tobytes()} for n in (4, 5)],
        preprocess.build("decode"),
        batch_size=2,
        seed=0,
    )
    with pytest.raises(ValueError, match="Field 'image' has different shapes in one batch"):
        next(batches)
    batches.close()


@pytest.mark.devices
def test_workers_give_the_same_batches(tmp_path):
    # In its own process: workers import the main script again.
    script = tmp_path / "workers.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import sys
            sys.path[:0] = {sys.path!r}
            sys.path.insert(0, {str(__import__("pathlib").Path(__file__).parent)!r})
            import numpy as np
            from test_pipeline import assert_same, train
            if __name__ == "__main__":
                assert_same(train(workers=2, num_threads=2, count=5), train(count=5))
                print("same")
            """
        )
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "same", done.stderr[-2000:]


def sharding():
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])


def test_device_prefetch_keeps_order_and_values():
    batches = train(count=4)
    with device_prefetch(iter(batches), sharding()) as arrays:
        received = list(arrays)
    assert all(isinstance(batch["image"], jax.Array) for batch in received)
    assert received[0]["index"].dtype == np.int32
    assert_same([jax.device_get(batch) for batch in received], batches)


def test_device_prefetch_runs_ahead_and_measures_waiting():
    made, go = [], threading.Event()

    def held_back():
        for i in range(6):
            go.wait()
            made.append(i)
            yield {"x": np.full(2, i, np.float32)}

    with device_prefetch(held_back(), sharding(), depth=2) as arrays:
        threading.Timer(0.3, go.set).start()
        next(arrays)
        assert 0.1 < arrays.wait_seconds < 10
        deadline = time.monotonic() + 10
        while len(made) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        assert len(made) == 4  # one given out, two waiting, one in hand
        waited = arrays.wait_seconds
        next(arrays)
        assert arrays.wait_seconds - waited < 0.1
    assert not arrays._thread.is_alive()


def test_device_prefetch_raises_the_error_of_the_pipeline_again_and_again():
    def broken():
        yield {"x": np.zeros(1, np.float32)}
        raise RecordError("record 5")

    with device_prefetch(broken(), sharding()) as arrays:
        next(arrays)
        for _ in range(2):
            with pytest.raises(RecordError, match="record 5"):
                next(arrays)


def test_device_prefetch_closes_early_and_closes_the_iterator():
    before = threading.active_count()
    batches = train_batches(Records(10), AUGMENT, batch_size=4, seed=0, num_threads=2)
    arrays = device_prefetch(batches, sharding())
    next(arrays)
    arrays.close()
    arrays.close()
    with pytest.raises(StopIteration):
        next(arrays)
    with pytest.raises(ValueError, match="closed"):
        next(batches)
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


@pytest.mark.parametrize(
    ("field", "words"),
    [(np.array(["PA"]), "Field 'x' of dtype <U2"), (np.array([2**40]), "Field 'x' does not fit into the 32-bit")],
)
def test_device_prefetch_refuses_what_devices_cannot_hold(field, words):
    with (
        device_prefetch(iter([{"x": field}]), sharding()) as arrays,
        pytest.raises((TypeError, ValueError), match=words),
    ):
        next(arrays)


def test_device_prefetch_depth():
    with pytest.raises(ValueError, match="depth=0"):
        device_prefetch(iter([]), sharding(), depth=0)
