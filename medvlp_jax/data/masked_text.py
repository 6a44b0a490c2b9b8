"""Texts as a BERT is pretrained on them: masked pieces, batches of texts of similar length, pairs of sections."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from medvlp_jax.data.pipeline import Source
from medvlp_jax.data.sections import study_texts
from medvlp_jax.data.text_cache import section_texts
from medvlp_jax.data.tokenizer import Tokenizer

QUANTILES = (0.3, 0.6, 0.9, 1.0)  # of the texts' lengths: the lengths of batches, one compilation each
PAIR_QUANTILE = 0.95  # the length of pairs; longer texts are cut
MASKED = 0.15


class Batch(NamedTuple):
    """Masked texts, numpy. weights_BxP is 1 where positions_BxP holds a masked position, 0 where it is filled up."""

    ids_BxL: Int[np.ndarray, "B L"]
    mask_BxL: Bool[np.ndarray, "B L"]
    positions_BxP: Int[np.ndarray, "B P"]
    targets_BxP: Int[np.ndarray, "B P"]
    weights_BxP: Float[np.ndarray, "B P"]


def mask_tokens(
    rows: Sequence[np.ndarray], size: int, length: int, rng: np.random.Generator, mask_id: int, words: np.ndarray
) -> Batch:
    """Picks 15 % of each text's pieces (at least one); 80 % of them become [MASK], 10 % another piece, 10 % stay.

    Args:
      rows: ids of up to `size` texts of at most `length` pieces, each within its [CLS] and [SEP].
      size, length: B and L of the batch; missing rows are padding.
      words: ids that may replace a piece.
    """
    most = max(1, math.ceil(MASKED * (length - 2)))
    ids, mask = np.zeros((size, length), np.int32), np.zeros((size, length), np.bool_)
    positions, targets = np.zeros((size, most), np.int32), np.zeros((size, most), np.int32)
    weights = np.zeros((size, most), np.float32)
    for i, row in enumerate(rows):
        count = max(1, round(MASKED * (len(row) - 2)))
        chosen = np.sort(rng.choice(len(row) - 2, count, replace=False)) + 1
        ids[i, : len(row)], mask[i, : len(row)] = row, True
        positions[i, :count], targets[i, :count], weights[i, :count] = chosen, row[chosen], 1
        luck = rng.random(count)
        replaced = np.where(luck < 0.8, mask_id, rng.choice(words, count))
        ids[i, chosen] = np.where(luck < 0.9, replaced, row[chosen])
    return Batch(ids, mask, positions, targets, weights)


def masking(tokenizer: Tokenizer) -> tuple[int, np.ndarray]:
    """The id of [MASK], and those of pieces that may replace another. Raises: ValueError without [MASK]."""
    names = tokenizer.tokens(range(tokenizer.vocab_size))
    if "[MASK]" not in names:
        raise ValueError("The tokenizer has no [MASK]; masked language modelling needs a BERT vocabulary.")
    words = [i for i, name in enumerate(names) if not (name[0] == "[" and name[-1] == "]" != name)]
    return names.index("[MASK]"), np.array(words)


class Corpus:
    """The distinct sections of some records as rows of ids, and masked batches of rows of similar length.

    Raises: ValueError when there is no text or the tokenizer has no [MASK].
    """

    def __init__(self, source: Source, tokenizer: Tokenizer, max_length: int, tokens_per_batch: int):
        texts = list(dict.fromkeys(text for text in section_texts(source, "mask") if text.strip()))
        self._mask_id, self._words = masking(tokenizer)
        self._tokens = tokens_per_batch
        ids_NxL, mask_NxL = tokenizer.encode(texts, max_length)
        self.rows = [ids[mask] for ids, mask in zip(ids_NxL, mask_NxL, strict=True) if mask.sum() > 2]
        if not self.rows:
            raise ValueError("No record has a findings or impression text; there is nothing to learn from.")
        cuts = np.quantile([len(row) for row in self.rows], QUANTILES)
        self._lengths = sorted({min(math.ceil(cut / 8) * 8, max_length) for cut in cuts})

    def train(self, seed: int) -> Iterator[Batch]:
        """Endless; every epoch in another order, and what does not fill a batch waits for the next epoch."""
        waiting: dict[int, list[np.ndarray]] = {length: [] for length in self._lengths}
        for epoch in itertools.count():
            rng = np.random.Generator(np.random.Philox(key=[seed, epoch]))
            for i in rng.permutation(len(self.rows)):
                length = self._length(self.rows[i])
                waiting[length].append(self.rows[i])
                if len(waiting[length]) == self._size(length):
                    yield mask_tokens(waiting[length], self._size(length), length, rng, self._mask_id, self._words)
                    waiting[length] = []

    def once(self, seed: int) -> Iterator[Batch]:
        """Every row once; the last batch of a length is padded."""
        rng = np.random.Generator(np.random.Philox(key=[seed, 2**63]))
        for length in self._lengths:
            rows = [row for row in self.rows if self._length(row) == length]
            for start in range(0, len(rows), self._size(length)):
                part = rows[start : start + self._size(length)]
                yield mask_tokens(part, self._size(length), length, rng, self._mask_id, self._words)

    def most_frequent(self) -> int:
        """The piece that a guess without context should name."""
        return int(np.bincount(np.concatenate([row[1:-1] for row in self.rows])).argmax())

    def _length(self, row: np.ndarray) -> int:
        return next(length for length in self._lengths if len(row) <= length)

    def _size(self, length: int) -> int:
        return max(1, self._tokens // length)


class Pairs:
    """Findings and impressions of the same report, the distinct ones of some records, in masked batches.

    rows: (findings, impression) as ids, cut to `length`.
    """

    def __init__(self, source: Source, tokenizer: Tokenizer, max_length: int):
        texts = (study_texts(source[i]) for i in range(len(source)))
        both = ((x["findings"], x["impression"]) for x in texts if x["has_findings"] and x["has_impression"])
        pairs = list(dict.fromkeys(both))
        self._mask_id, self._words = masking(tokenizer)
        encoded = [tokenizer.encode([pair[side] for pair in pairs], max_length) for side in (0, 1)] if pairs else []
        sides = [[ids[mask] for ids, mask in zip(*side, strict=True)] for side in encoded]
        lengths = [len(row) for side in sides for row in side] or [8]
        self.length = min(math.ceil(np.quantile(lengths, PAIR_QUANTILE) / 8) * 8, max_length)
        self.rows = [
            tuple(row if len(row) <= self.length else np.append(row[: self.length - 1], row[-1]) for row in pair)
            for pair in zip(*sides, strict=True)
            if all(len(row) > 2 for row in pair)
        ]

    def train(self, seed: int, size: int) -> Iterator[Batch]:
        """Endless batches of `size` findings and then their impressions; no text twice in a batch. What does not fit
        into a batch waits for the next. Needs `batches_hold(size)`."""
        waiting: list[int] = []
        for epoch in itertools.count():
            rng = np.random.Generator(np.random.Philox(key=[seed, 2**62 + epoch]))
            waiting += rng.permutation(len(self.rows)).tolist()
            if len(self._apart(waiting, size)) < size:  # pairs in front shut out the rest: an order that is known to do
                waiting = list(range(len(self.rows)))
            while len(batch := self._apart(waiting, size)) == size:
                chosen = set(batch)
                waiting = [i for place, i in enumerate(waiting) if place not in chosen]
                rows = [self.rows[i] for i in batch.values()]
                both = [*(pair[0] for pair in rows), *(pair[1] for pair in rows)]
                yield mask_tokens(both, 2 * size, self.length, rng, self._mask_id, self._words)

    def batches_hold(self, size: int) -> bool:
        """Whether there are so many pairs without a text in common."""
        return len(self._apart(range(len(self.rows)), size)) == size

    def _apart(self, candidates: Sequence[int], size: int) -> dict[int, int]:
        """Place -> pair of the first `size` candidates that have no text in common."""
        seen: set[bytes] = set()
        batch: dict[int, int] = {}
        for place, i in enumerate(candidates):
            texts = {row.tobytes() for row in self.rows[i]}
            if len(batch) == size:
                break
            if not texts & seen:
                batch[place] = i
                seen |= texts
        return batch
