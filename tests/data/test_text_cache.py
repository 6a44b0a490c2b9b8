"""Hits, misses, stale keys, additions, interrupted writes, several processes."""

import errno
import json
import pickle
import threading
import time

import numpy as np
import pytest

from medvlp_jax.data import preprocess, text_cache
from medvlp_jax.data.text_cache import TextCache, cache_key, section_texts

TEXTS = ["clear lungs", "small left effusion", "", "clear lungs", "cardiomegaly", "no change", "épanchement"]


class Encoder:
    """Vectors that tell their text: (length, first character, 1)."""

    def __init__(self):
        self.batches = []

    def __call__(self, texts):
        self.batches.append(list(texts))
        return np.array([[len(t), ord(t[0]) if t else 0, 1] for t in texts], np.float64)

    @property
    def texts(self):
        return {text for batch in self.batches for text in batch}


def build(folder, texts=TEXTS, key="k1", encode=None, **arguments):
    return TextCache.build(texts, encode or Encoder(), 3, key, folder, **{"batch_size": 4, **arguments})


def test_vectors_come_back(tmp_path):
    encode = Encoder()
    cache = build(tmp_path / "cache", encode=encode)
    assert len(cache) == len(set(TEXTS)) == 6
    for text in TEXTS:
        vector = cache.lookup(text)
        np.testing.assert_array_equal(vector, encode([text])[0])
        assert vector.dtype == np.float32
        assert text in cache
    vector[:] = 0  # a copy: the file is untouched
    np.testing.assert_array_equal(cache.lookup(TEXTS[-1]), encode([TEXTS[-1]])[0])


def test_texts_are_encoded_once_longest_first_in_full_batches(tmp_path):
    encode, seen = Encoder(), []
    build(tmp_path, encode=encode, progress=lambda done, total: seen.append((done, total)))
    assert [len(batch) for batch in encode.batches] == [4, 4]
    lengths = [len(text) for batch in encode.batches for text in batch][:6]
    assert lengths == sorted(lengths, reverse=True)
    assert seen == [(4, 6), (6, 6)]


def test_reopened_cache_needs_no_encoder(tmp_path):
    build(tmp_path)
    reopened = TextCache.open(tmp_path, "k1")
    assert isinstance(reopened._vectors_NxE, np.memmap)
    again, encode = None, Encoder()
    again = build(tmp_path, encode=encode)
    assert encode.batches == []
    for cache in (reopened, again, pickle.loads(pickle.dumps(reopened))):
        np.testing.assert_array_equal(cache.lookup("cardiomegaly"), [12, ord("c"), 1])


def test_missing_text_says_what_to_do_without_showing_it(tmp_path):
    cache = build(tmp_path)
    assert "patient John" not in cache
    with pytest.raises(KeyError) as info:
        cache.lookup("patient John")
    message = str(info.value)
    assert "A text of 12 characters is not among the 6" in message
    assert f"rm -r {tmp_path}" in message
    assert "section_texts(source, policy)" in message
    assert "John" not in message


def test_other_key_is_stale_and_rebuilt(tmp_path):
    build(tmp_path)
    with pytest.raises(ValueError, match="stale: built with key k1, needed k2"):
        TextCache.open(tmp_path, "k2")
    encode = Encoder()
    cache = build(tmp_path, ["no change"], key="k2", encode=encode)
    assert encode.texts == {"no change"}
    assert (len(cache), cache.key) == (1, "k2")
    assert len(list(tmp_path.iterdir())) == 3  # the old files are gone


def test_new_texts_are_added_to_the_old(tmp_path):
    old = build(tmp_path)
    encode = Encoder()
    cache = build(tmp_path, ["new nodule", "clear lungs"], encode=encode)
    assert encode.texts == {"new nodule"}
    assert len(cache) == 7
    for text in [*TEXTS, "new nodule"]:
        np.testing.assert_array_equal(cache.lookup(text), encode([text])[0])
    np.testing.assert_array_equal(old.lookup("clear lungs"), cache.lookup("clear lungs"))  # still mapped


def test_no_cache_and_damaged_caches(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No text cache in .*TextCache\.build"):
        TextCache.open(tmp_path / "none")
    build(tmp_path)
    meta = json.loads((tmp_path / "meta.json").read_text())
    (tmp_path / "meta.json").write_text(json.dumps({**meta, "count": 5}))
    with pytest.raises(ValueError, match="is damaged: delete the folder"):
        TextCache.open(tmp_path)
    (tmp_path / "meta.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged: delete the folder"):
        TextCache.open(tmp_path)
    assert len(build(tmp_path)) == 6  # building starts over
    (tmp_path / json.loads((tmp_path / "meta.json").read_text())["vectors"]).write_bytes(b"")
    assert len(build(tmp_path)) == 6


def test_interrupted_build_leaves_nothing_and_keeps_the_old(tmp_path):
    build(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())

    def stops(texts):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, ["another"], encode=stops)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert len(TextCache.open(tmp_path, "k1")) == 6


@pytest.mark.parametrize(
    ("encode", "words"),
    [
        (lambda texts: np.zeros((len(texts), 2)), r"returned shape \(4, 2\); expected \(4, 3\)"),
        (lambda texts: np.full((len(texts), 3), np.nan), "NaN or infinity in texts 0 to 3"),
    ],
)
def test_bad_vectors_are_refused(tmp_path, encode, words):
    with pytest.raises(ValueError, match=words):
        build(tmp_path, encode=encode)
    assert not list(tmp_path.iterdir())


def test_full_disk(tmp_path, monkeypatch):
    usage = text_cache.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(text_cache.shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(OSError, match=r"The disk of .* is full: the text cache needs") as info:
        build(tmp_path)
    assert info.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


def test_other_processes_wait_for_the_first(tmp_path):
    opened = []
    waiter = threading.Thread(target=lambda: opened.append(build(tmp_path, process_index=1, timeout_seconds=20)))
    build(tmp_path, TEXTS[:2])  # an incomplete one is there already: not enough for the waiting process
    waiter.start()
    time.sleep(0.2)
    assert not opened
    build(tmp_path)
    waiter.join(timeout=20)
    assert len(opened[0]) == 6
    with pytest.raises(TimeoutError, match=r"Process 0 did not finish .* within 0 s"):
        build(tmp_path, ["never built"], process_index=1, timeout_seconds=0.2)


def test_empty_cache(tmp_path):
    cache = build(tmp_path, [])
    assert len(cache) == 0
    assert "x" not in cache


def test_key_depends_on_weights_and_settings():
    params = {"a": np.arange(3.0), "b": {"c": np.ones(2, np.float32)}}
    changed = {"a": np.arange(3.0), "b": {"c": np.ones(2, np.float32) * 1.01}}
    renamed = {"a": np.arange(3.0), "b": {"d": np.ones(2, np.float32)}}
    keys = [
        cache_key(params, max_len=256, pooling="cls"),
        cache_key(changed, max_len=256, pooling="cls"),
        cache_key(renamed, max_len=256, pooling="cls"),
        cache_key(params, max_len=128, pooling="cls"),
    ]
    assert len(set(keys)) == 4
    assert keys[0] == cache_key(params, pooling="cls", max_len=256)


def test_cache_serves_what_the_pipeline_looks_up(tmp_path):
    records = [
        {"findings": " Clear lungs. ", "impression": "", "has_findings": True, "has_impression": False},
        {"findings": "nan", "impression": "Effusion.", "has_findings": True, "has_impression": True},
    ]
    for policy in ("mask", "space", "fallback_impression"):
        cache = build(tmp_path / policy, section_texts(records, policy))
        run = preprocess.build(f"sections({policy!r})|cached_text", text_cache=cache)
        for record in records:
            example = run(record, np.random.default_rng(0))
            assert example["findings_embedding"].shape == (3,)
            assert example["impression_embedding"].dtype == np.float32


def test_cache_serves_reports_and_their_sentences(tmp_path):
    records = [
        {"findings": "Clear lungs. Normal heart.", "impression": "Effusion."},
        {"findings": "", "impression": ""},
    ]
    parts = ("findings", "impression")
    cache = build(tmp_path, section_texts(records, "mask", ("report",), report=parts, sentences=True))
    assert len(cache) == 5  # the report, its three sentences, and nothing
    ops = f"sections('mask', report={parts})|sentence('report')|cached_text('report')"
    run = preprocess.build(ops, text_cache=cache)
    for record in records:
        assert run({**record, "has_report": True}, np.random.default_rng(0))["report_embedding"].shape == (3,)
