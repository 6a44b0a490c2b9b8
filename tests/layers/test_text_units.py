"""Words and sentences from pieces: what must hold for any segments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvlp_jax.data.tokenizer import word_segments
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
CONTINUES = np.asarray([piece.startswith("##") for piece in VOCABULARY])


def segments(drop_unclosed=False):
    segment = jnp.asarray(word_segments(CONTINUES[IDS], MASK))
    return t.drop_unclosed(segment) if drop_unclosed else segment


def test_words_without_special_tokens():
    mask = t.unit_mask(segments(), LENGTH, skip=(1, 1))
    assert [np.flatnonzero(row).tolist() for row in mask] == [[1, 2], [1, 2, 3], [], [1, 2, 3, 4, 5], []]
    assert t.unit_mask(segments(), 3).sum(axis=1).tolist() == [3, 3, 2, 3, 0]


def test_a_full_text_loses_its_end_where_the_released_loop_ends_early():
    kept = segments()
    segment = segments(drop_unclosed=True)
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
        t.segment_reduce(jnp.asarray(PIECES), segments(), 4, "last")


def test_mean_of_units_over_the_real_ones_or_over_all():
    mask = t.unit_mask(segments(), LENGTH)
    real = np.asarray(t.unit_mean(jnp.asarray(PIECES), jnp.asarray(mask)))
    all_of_them = np.asarray(t.unit_mean(jnp.asarray(PIECES), jnp.asarray(mask), over_padding=True))
    np.testing.assert_allclose(real[1], PIECES[1, :5].mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(all_of_them[1], PIECES[1, :5].sum(axis=0) / LENGTH, rtol=1e-5)
    assert np.all(real[4] == 0)


def test_words_have_their_own_attention_or_the_following_one():
    segment = segments()
    attention = jnp.arange(1.0, 9.0)[None] * MASK
    own = np.asarray(t.unit_attention(attention, segment, LENGTH))
    following = np.asarray(t.unit_attention(attention, segment, LENGTH, following_piece=True))
    np.testing.assert_array_equal(own[0], [1, 2 + 3 + 4, 5, 6, 0, 0, 0, 0])
    np.testing.assert_array_equal(following[0], [2, 3 + 4 + 5, 6, 0, 0, 0, 0, 0])
