"""Masking, corpus and pairs of what the small BERT learns from."""

import collections
import itertools

import numpy as np
import pytest
from made_reports import CLS, MASK, NAMES, SENTENCES, SEP, SOURCE, WORDS, matched_source

from medvlp_jax.data import masked_text

# ---- masking ----------------------------------------------------------------------------


def rows_of(lengths, low, high, rng):
    """Rows of random pieces from low..high-1 within [CLS] and [SEP]."""
    return [np.array([CLS, *rng.integers(low, high, n - 2), SEP], np.int32) for n in lengths]


def test_masked_shares_and_replacements():
    rng = np.random.default_rng(0)
    rows = rows_of([42] * 1000, 10, 50, rng)
    words = np.arange(100, 200)  # none of them occurs in the rows
    batch = masked_text.mask_tokens(rows, 1000, 48, rng, MASK, words)
    assert batch.weights_BxP.sum() == 6 * 1000  # 15 % of 40
    new = np.take_along_axis(batch.ids_BxL, batch.positions_BxP, axis=1)[batch.weights_BxP == 1]
    old = batch.targets_BxP[batch.weights_BxP == 1]
    assert np.mean(new == MASK) == pytest.approx(0.8, abs=0.02)
    assert np.mean(np.isin(new, words)) == pytest.approx(0.1, abs=0.015)
    assert np.mean(new == old) == pytest.approx(0.1, abs=0.015)
    assert len(set(new[np.isin(new, words)])) > 90  # any word, not one
    # Every position of a row is as likely as any other.
    counts = np.bincount(batch.positions_BxP[batch.weights_BxP == 1], minlength=42)[1:41]
    assert counts.min() > 100
    assert counts.max() < 200


def test_masking_touches_chosen_pieces_only():
    rng = np.random.default_rng(1)
    rows = rows_of([3, 4, 9, 17, 24, 32], 10, 50, rng)
    for _ in range(50):
        batch = masked_text.mask_tokens(rows, 8, 32, rng, MASK, np.arange(100, 200))
        assert batch.ids_BxL.shape == batch.mask_BxL.shape == (8, 32)
        assert batch.weights_BxP.sum(axis=1).tolist() == [1, 1, 1, 2, 3, 4, 0, 0]  # the last two rows are padding
        assert not batch.mask_BxL[6:].any()
        for i, row in enumerate(rows):
            chosen = batch.positions_BxP[i][batch.weights_BxP[i] == 1]
            assert len(set(chosen)) == len(chosen)
            assert chosen.min() >= 1
            assert chosen.max() <= len(row) - 2  # never [CLS] or [SEP]
            np.testing.assert_array_equal(batch.targets_BxP[i][batch.weights_BxP[i] == 1], row[chosen])
            others = np.setdiff1d(np.arange(len(row)), chosen)
            np.testing.assert_array_equal(batch.ids_BxL[i][others], row[others])
            assert batch.mask_BxL[i].sum() == len(row)
            assert batch.mask_BxL[i][: len(row)].all()


# ---- corpus -----------------------------------------------------------------------------


def originals(batch):
    """The rows of a batch before masking, as tuples."""
    ids = batch.ids_BxL.copy()
    for i, weights in enumerate(batch.weights_BxP):
        ids[i, batch.positions_BxP[i][weights == 1]] = batch.targets_BxP[i][weights == 1]
    return [tuple(row[mask].tolist()) for row, mask in zip(ids, batch.mask_BxL, strict=True) if mask.any()]


def mixed_corpus(max_length=64, tokens_per_batch=64):
    long = [{"findings": " ".join(SENTENCES[i : i + n]), "impression": "  "} for i, n in enumerate((2, 3, 4) * 3)]
    return masked_text.Corpus([*SOURCE, *long], WORDS, max_length, tokens_per_batch)


def test_every_distinct_text_once():
    corpus = mixed_corpus()
    assert len(corpus.rows) == len(SENTENCES) + 9
    seen = collections.Counter(row for batch in corpus.once(0) for row in originals(batch))
    assert seen == collections.Counter(tuple(row.tolist()) for row in corpus.rows)
    assert set(seen.values()) == {1}
    texts = {WORDS.decode(row) for row in corpus.rows}
    assert {WORDS.decode(WORDS.encode([text], 64)[0][0]) for text in SENTENCES} < texts


def test_batches_hold_similar_lengths_and_never_too_many_tokens():
    corpus = mixed_corpus()
    shapes = set()
    for batch in itertools.islice(corpus.train(0), 60):
        size, length = batch.ids_BxL.shape
        assert size == max(1, 64 // length)
        assert length % 8 == 0
        assert batch.mask_BxL.any(axis=1).all()  # training batches are full
        shapes.add((size, length))
    assert 2 <= len(shapes) <= 4
    assert max(map(len, corpus.rows)) <= max(length for _, length in shapes) <= 64


def test_long_texts_are_cut():
    corpus = mixed_corpus(max_length=20)
    assert max(map(len, corpus.rows)) == 20
    assert all(row[0] == CLS and row[-1] == SEP for row in corpus.rows)
    assert max(batch.ids_BxL.shape[1] for batch in corpus.once(0)) == 20


def test_training_order_depends_on_the_seed_alone():
    def batches(seed):
        return list(itertools.islice(mixed_corpus().train(seed), 40))

    first, again, other = batches(3), batches(3), batches(4)
    assert all(np.array_equal(x, y) for a, b in zip(first, again, strict=True) for x, y in zip(a, b, strict=True))
    assert any(not np.array_equal(a.ids_BxL, b.ids_BxL) for a, b in zip(first, other, strict=True))


def test_training_is_endless_and_leaves_no_text_behind():
    corpus = mixed_corpus()
    batches = list(itertools.islice(corpus.train(0), 200))
    for length in {batch.ids_BxL.shape[1] for batch in batches}:
        seen = collections.Counter(
            row for batch in batches if batch.ids_BxL.shape[1] == length for row in originals(batch)
        )
        rows = [row for row in corpus.rows if corpus._length(row) == length]
        assert len(seen) == len(rows)
        assert max(seen.values()) - min(seen.values()) <= 1  # an epoch is over before the next begins
        assert min(seen.values()) >= 3
    masked = [batch.positions_BxP.tobytes() for batch in batches]
    assert len(set(masked)) > 100  # other masks in every epoch


def test_most_frequent_piece():
    source = [{"findings": "left left left lung", "impression": "chest lung left"}]
    assert NAMES[masked_text.Corpus(source, WORDS, 64, 64).most_frequent()] == "left"


def test_replacements_are_words():
    names = {NAMES[i] for i in mixed_corpus()._words}
    assert names.isdisjoint({"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"})
    assert {"left", "lung", "[", "]"} <= names
    assert len(names) == WORDS.vocab_size - 5


# ---- pairs of sections ------------------------------------------------------------------


def test_pairs_of_a_batch_have_no_text_in_common():
    source = [
        *matched_source(2),
        {"findings": SENTENCES[0], "impression": "Known chest."},
        {"findings": "", "impression": "x"},
    ]
    pairs = masked_text.Pairs(source, WORDS, 64)
    assert len(pairs.rows) == len(SENTENCES) + 1  # distinct, both sections there
    assert pairs.batches_hold(len(SENTENCES))
    assert not pairs.batches_hold(len(SENTENCES) + 1)  # two share their findings
    seen = collections.Counter()
    for batch in itertools.islice(pairs.train(0, 8), 40):
        texts = originals(batch)
        assert len(set(texts)) == 16
        for findings, impression in zip(texts[:8], texts[8:], strict=True):
            said = WORDS.decode(impression).split()[1:]
            assert said in (WORDS.decode(findings).split()[3:], ["chest."])
        seen.update(texts[:8])
    assert len(seen) == len(SENTENCES)  # what waits comes later
    again, other = (next(masked_text.Pairs(source, WORDS, 64).train(seed, 8)) for seed in (0, 1))
    assert np.array_equal(again.ids_BxL, next(pairs.train(0, 8)).ids_BxL)
    assert not np.array_equal(again.ids_BxL, other.ids_BxL)


def test_pairs_that_shut_out_others_do_not_stop_the_batches():
    shared = [(0, 1), (0, 2), (3, 2)]  # the middle one, drawn first, leaves none that may stand beside it
    source = [{"findings": SENTENCES[f], "impression": SENTENCES[i]} for f, i in shared]
    for seed in range(4):
        for batch in itertools.islice(masked_text.Pairs(source, WORDS, 64).train(seed, 2), 6):
            assert len(set(originals(batch))) == 4


def test_long_pairs_are_cut_between_their_special_tokens():
    long = [{"findings": " ".join(SENTENCES[:9]), "impression": SENTENCES[0]}]
    pairs = masked_text.Pairs([*matched_source(), *long], WORDS, 200)
    cut = max((row for pair in pairs.rows for row in pair), key=len)
    assert len(cut) == pairs.length < 100
    assert (cut[0], cut[-1]) == (CLS, SEP)
