"""Words and sentences from pieces: the released merging written as a loop, and what must hold for any segments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvlp_jax.layers import text_units as t

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "heart", "##s", "##ly", "large", "[MASK]"]
TEXTS = [
    ["[CLS]", "heart", "##s", "##ly", "large", "[SEP]"],
    ["[CLS]", "large", "[UNK]", "heart", "##s", "[SEP]"],
    ["[CLS]", "[SEP]"],
    ["[CLS]", "heart", "large", "heart", "large", "##ly", "large", "[SEP]"],  # fills all positions
    [],
]
LENGTH = 8
IDS = np.asarray([[VOCABULARY.index(p) for p in text] + [0] * (LENGTH - len(text)) for text in TEXTS], np.int32)
MASK = np.asarray([[True] * len(text) + [False] * (LENGTH - len(text)) for text in TEXTS])
PIECES = np.random.default_rng(0).normal(size=(len(TEXTS), LENGTH, 3)).astype(np.float32)
CONTINUES, BRACKETED = t.piece_tables(VOCABULARY)


def merged(text, vectors):
    """Word after word, as the released code builds them; names and sums."""
    names, sums, bank = [], [], []
    for piece, vector in zip(text, vectors, strict=False):
        if bank and not piece.startswith("##"):
            sums.append(np.sum(bank, axis=0))
            bank = []
        if not bank:
            names.append(piece)
        bank.append(vector.astype(np.float64))
    return names, [*sums, np.sum(bank, axis=0)] if bank else sums


def test_words_are_those_of_the_released_loop():
    segment = t.word_segments(CONTINUES[IDS], MASK)
    assert isinstance(segment, np.ndarray)
    np.testing.assert_array_equal(segment[0], [0, 1, 1, 1, 2, 3, -1, -1])
    np.testing.assert_array_equal(segment[4], [-1] * LENGTH)
    got = t.segment_reduce(jnp.asarray(PIECES), jnp.asarray(segment), LENGTH, "sum")
    released = t.released_word_mask(segment, BRACKETED[IDS], LENGTH)
    for row, (text, vectors) in enumerate(zip(TEXTS, PIECES, strict=True)):
        names, sums = merged(text, vectors)
        np.testing.assert_allclose(got[row, : len(names)], np.asarray(sums).reshape(-1, 3), rtol=1e-6, atol=1e-6)
        assert np.all(np.asarray(got[row, len(names) :]) == 0)
        # [CLS] and as many words after it as there are without a bracket.
        count = len([name for name in names if not name.startswith("[")]) + 1 if names else 0
        np.testing.assert_array_equal(released[row], np.arange(LENGTH) < count)


def test_ids_and_masks_are_the_same_inside_a_step():
    @jax.jit
    def inside(ids, mask):
        segment = t.word_segments(jnp.asarray(CONTINUES)[ids], mask, drop_unclosed=True)
        released = t.released_word_mask(segment, jnp.asarray(BRACKETED)[ids], LENGTH)
        return segment, released, t.unit_mask(segment, LENGTH, skip=(1, 1))

    segment = t.word_segments(CONTINUES[IDS], MASK, drop_unclosed=True)
    outside = segment, t.released_word_mask(segment, BRACKETED[IDS], LENGTH), t.unit_mask(segment, LENGTH, skip=(1, 1))
    for a, b in zip(inside(IDS, MASK), outside, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype


def test_words_without_special_tokens():
    mask = t.unit_mask(t.word_segments(CONTINUES[IDS], MASK), LENGTH, skip=(1, 1))
    assert [np.flatnonzero(row).tolist() for row in mask] == [[1, 2], [1, 2, 3], [], [1, 2, 3, 4, 5], []]
    assert t.unit_mask(t.word_segments(CONTINUES[IDS], MASK), 3).sum(axis=1).tolist() == [3, 3, 2, 3, 0]


def test_a_full_text_loses_its_end_where_the_released_loop_ends_early():
    kept = t.word_segments(CONTINUES[IDS], MASK)
    segment = t.word_segments(CONTINUES[IDS], MASK, drop_unclosed=True)
    np.testing.assert_array_equal(segment[3], [0, 1, 2, 3, 4, 4, -1, -1])
    np.testing.assert_array_equal(segment[:3], kept[:3])


@pytest.mark.parametrize("how", t.REDUCTIONS)
def test_reductions_of_any_segments(how):
    segment = np.asarray([[-1, 0, 0, 2, 2, 2, 5, -1]] * len(TEXTS))  # nothing in 1; 5 is beyond the units
    weight = np.random.default_rng(1).normal(size=(len(TEXTS), 4, 3))

    def value(pieces):
        return jnp.sum(weight * t.segment_reduce(pieces, jnp.asarray(segment), 4, how))

    got = np.asarray(t.segment_reduce(jnp.asarray(PIECES), jnp.asarray(segment), 4, how))
    rule = getattr(np, how)
    np.testing.assert_allclose(got[:, 0], rule(PIECES[:, 1:3], axis=1), rtol=1e-6)
    np.testing.assert_allclose(got[:, 2], rule(PIECES[:, 3:6], axis=1), rtol=1e-6)
    assert np.all(got[:, [1, 3]] == 0)
    gradient = np.asarray(jax.jit(jax.grad(value))(PIECES))
    assert np.all(gradient[:, [0, 6, 7]] == 0)
    share = {"sum": 3, "mean": 1, "max": 1}[how]
    np.testing.assert_allclose(gradient[:, 3:6].sum(axis=1), share * weight[:, 2], rtol=1e-5)
    if how == "max":
        np.testing.assert_array_equal(gradient[:, 3:6] != 0, PIECES[:, 3:6] == got[:, 2:3])


def test_unknown_reductions_are_refused():
    with pytest.raises(ValueError, match="sum, mean, max"):
        t.segment_reduce(jnp.asarray(PIECES), jnp.asarray(t.word_segments(CONTINUES[IDS], MASK)), 4, "last")


def test_mean_of_units_over_the_real_ones_or_over_all():
    mask = t.unit_mask(t.word_segments(CONTINUES[IDS], MASK), LENGTH)
    real = np.asarray(t.unit_mean(jnp.asarray(PIECES), jnp.asarray(mask)))
    all_of_them = np.asarray(t.unit_mean(jnp.asarray(PIECES), jnp.asarray(mask), over_padding=True))
    np.testing.assert_allclose(real[1], PIECES[1, :5].mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(all_of_them[1], PIECES[1, :5].sum(axis=0) / LENGTH, rtol=1e-5)
    assert np.all(real[4] == 0)


def test_words_have_their_own_attention_or_the_following_one():
    segment = jnp.asarray(t.word_segments(CONTINUES[IDS], MASK))
    attention = jnp.arange(1.0, 9.0)[None] * MASK
    own = np.asarray(t.unit_attention(attention, segment, LENGTH))
    following = np.asarray(t.unit_attention(attention, segment, LENGTH, following_piece=True))
    np.testing.assert_array_equal(own[0], [1, 2 + 3 + 4, 5, 6, 0, 0, 0, 0])
    np.testing.assert_array_equal(following[0], [2, 3 + 4 + 5, 6, 0, 0, 0, 0, 0])
