"""A small BERT from a data set's own reports:  python -m medvlp_jax.pretrain_text --data cxr_phantom --data_dir data

Masked language modelling (arXiv 1810.04805, section 3.1, task 1, without sentence pairs) on the findings and
impressions of the training split, about a minute on two CPU cores. The result is a folder in transformers layout,
which `text.weights` takes; `text.weights=auto` makes and finds it by itself where no other tower is installed.
The folder holds pieces of the reports' words: guard it like the data.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from medvlp_jax.data import tokenizer as tokenizers
from medvlp_jax.data.pipeline import Source
from medvlp_jax.data.records import RecordSource
from medvlp_jax.data.text_cache import section_texts
from medvlp_jax.encoders.bert import BertConfig, BertForMaskedLM
from medvlp_jax.interop import save_bert
from medvlp_jax.metrics import NonFiniteError
from medvlp_jax.optim import decay_mask
from medvlp_jax.text_tower import PHANTOM, tower_folder

STEPS = 500
SHAPE = dict(hidden_size=128, num_hidden_layers=3, num_attention_heads=4, intermediate_size=512)
POSITIONS = 256
VOCABULARY = 2000  # pieces, for data sets without a packaged vocabulary
QUANTILES = (0.3, 0.6, 0.9, 1.0)  # of the texts' lengths: the lengths of batches, one compilation each
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


class Corpus:
    """The distinct sections of some records as rows of ids, and masked batches of rows of similar length.

    Raises: ValueError when there is no text or the tokenizer has no [MASK].
    """

    def __init__(self, source: Source, tokenizer: tokenizers.Tokenizer, max_length: int, tokens_per_batch: int):
        texts = list(dict.fromkeys(text for text in section_texts(source, "mask") if text.strip()))
        names = tokenizer.tokens(range(tokenizer.vocab_size))
        if "[MASK]" not in names:
            raise ValueError("The tokenizer has no [MASK]; masked language modelling needs a BERT vocabulary.")
        self._mask_id = names.index("[MASK]")
        self._words = np.array([i for i, name in enumerate(names) if not (name[0] == "[" and name[-1] == "]" != name)])
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


def pretrain(
    source: Source,
    tokenizer: tokenizers.Tokenizer,
    config: BertConfig,
    *,
    validation: Source | None = None,
    steps: int = STEPS,
    seed: int = 0,
    learning_rate: float = 2e-3,
    tokens_per_batch: int = 4096,
    log_every: int = 50,
    say: Callable[[str], None] = print,
) -> tuple[dict[str, Any], dict[str, float]]:
    """Masked language modelling from scratch: AdamW, a tenth of warm-up, then one cosine to zero.

    Args:
      source, validation: records with `findings` and `impression`; equal texts count once.
      config: shape of the BERT; `vocab_size` must be the tokenizer's.
      tokens_per_batch: padding included; a batch of length L holds this many // L texts.
    Returns: variables of `BertForMaskedLM(config)` as numpy, and `loss` (nats), `accuracy` (0..1) of the masked
      pieces of `validation`, beside `unigram_accuracy` of always naming the training texts' most frequent piece.
    Raises: ValueError for steps < 1, sizes that do not fit or records without text; NonFiniteError.
    """
    if steps < 1:
        raise ValueError(f"steps={steps} must be at least 1.")
    if config.vocab_size != tokenizer.vocab_size:
        raise ValueError(f"vocab_size={config.vocab_size}, but the tokenizer has {tokenizer.vocab_size} pieces.")
    corpus = Corpus(source, tokenizer, config.max_position_embeddings, tokens_per_batch)
    model = BertForMaskedLM(config)
    rate = optax.warmup_cosine_decay_schedule(0.0, learning_rate, max(1, steps // 10), max(2, steps))
    tx = optax.adamw(rate, b2=0.98, weight_decay=0.01, mask=lambda params: decay_mask(params, "matrices"))

    def loss_fn(params: Any, batch: Batch) -> tuple[Array, Array]:
        logits_BxPxV = model.apply({"params": params}, batch.ids_BxL, batch.mask_BxL, positions=batch.positions_BxP)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits_BxPxV, batch.targets_BxP) * batch.weights_BxP
        right = (logits_BxPxV.argmax(-1) == batch.targets_BxP) * batch.weights_BxP
        sums = jnp.stack([losses.sum(), right.sum(), batch.weights_BxP.sum()])
        return sums[0] / sums[2], sums

    def step_fn(state: Any, batch: Batch) -> tuple[Any, Array]:
        params, opt_state = state
        (_, sums), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), sums

    step_fn = jax.jit(step_fn, donate_argnums=0)
    none = jnp.zeros((1, 8), jnp.int32)
    params = jax.jit(model.init)(jax.random.key(seed), none, none)["params"]
    state = (params, tx.init(params))
    say(f"{len(corpus.rows)} distinct texts, {sum(map(len, corpus.rows))} pieces; {steps} steps")
    sums, tokens, start = jnp.zeros(3), 0, time.monotonic()
    for step, batch in zip(range(1, steps + 1), corpus.train(seed), strict=False):
        state, new = step_fn(state, batch)
        sums, tokens = sums + new, tokens + int(batch.mask_BxL.sum())
        if step % log_every == 0 or step == steps:
            total, right, count = np.asarray(sums)
            if not math.isfinite(total):
                raise NonFiniteError(f"The loss is not finite before step {step}; try a lower learning_rate.")
            line = f"step {step}/{steps}  loss {total / count:.3f}  masked accuracy {right / count:.1%}"
            say(f"{line}  {tokens / (time.monotonic() - start):.0f} tokens/s")
            sums, tokens, start = jnp.zeros(3), 0, time.monotonic()
    scores = {}
    if validation is not None:
        held_out = Corpus(validation, tokenizer, config.max_position_embeddings, tokens_per_batch)
        evaluate, guess, sums = jax.jit(lambda p, batch: loss_fn(p, batch)[1]), corpus.most_frequent(), np.zeros(4)
        for batch in held_out.once(seed):
            lucky = ((batch.targets_BxP == guess) * batch.weights_BxP).sum()
            sums += np.append(np.asarray(evaluate(state[0], batch)), lucky)
        scores = {"loss": sums[0] / sums[2], "accuracy": sums[1] / sums[2], "unigram_accuracy": sums[3] / sums[2]}
    return {"params": jax.device_get(state[0])}, scores


def make(
    data_dir: str | os.PathLike[str],
    data: str,
    out: str | os.PathLike[str] | None = None,
    *,
    steps: int = STEPS,
    seed: int = 0,
    overwrite: bool = False,
    say: Callable[[str], None] = print,
) -> Path:
    """Pretrains on a prepared data set and writes the folder, whole or not at all; returns it.

    Args: out: default `text_tower.tower_folder`. overwrite: replace a tower that is there; otherwise it is kept.
    Raises: FileNotFoundError naming the prepare command; ValueError when `out` holds something else.
    """
    out = Path(out) if out is not None else tower_folder(data_dir, data)
    if (out / "config.json").is_file() and not overwrite:
        say(f"Already there: {out}  (--overwrite makes it anew)")
        return out
    if out.exists() and not (out / "config.json").is_file():
        raise ValueError(f"{os.fspath(out)!r} exists and is no text tower (no config.json). Remove it or change --out.")
    train, validation = (RecordSource(data_dir, data, split) for split in ("train", "validation"))
    token = secrets.token_hex(4)
    new, old = (out.with_name(f".{out.name}.{what}-{token}") for what in ("new", "old"))
    new.mkdir(parents=True)
    try:
        if data.split("/")[0] == "cxr_phantom":
            tokenizer = tokenizers.load(PHANTOM)
            vocabulary = tokenizer.tokens(range(tokenizer.vocab_size))
        else:
            vocabulary = tokenizers.train_wordpiece(section_texts(train, "mask"), VOCABULARY)
        (new / "vocab.txt").write_text("".join(f"{piece}\n" for piece in vocabulary), encoding="utf-8")
        settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": POSITIONS}
        (new / "tokenizer_config.json").write_text(json.dumps(settings) + "\n", encoding="utf-8")
        tokenizer = tokenizers.load(new)
        tokenizer.save(new)
        config = BertConfig(vocab_size=tokenizer.vocab_size, max_position_embeddings=POSITIONS, **SHAPE)
        start = time.monotonic()
        variables, scores = pretrain(train, tokenizer, config, validation=validation, steps=steps, seed=seed, say=say)
        save_bert(new, config, variables)
        if out.exists():
            out.rename(old)
        new.rename(out)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    say(
        f"validation: masked loss {scores['loss']:.3f}, accuracy {scores['accuracy']:.1%} "
        f"(the most frequent piece: {scores['unigram_accuracy']:.1%})"
    )
    say(f"Made in {time.monotonic() - start:.0f} s: {out}")
    return out


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser("python -m medvlp_jax.pretrain_text", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data", default="cxr_phantom", help="prepared data set (default: cxr_phantom)")
    parser.add_argument("--data_dir", default="data", help="root of the prepared data sets (default: data)")
    parser.add_argument("--out", help="folder to write (default: <data_dir>/text_towers/phantom, or by data set)")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"default: {STEPS}")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--overwrite", action="store_true", help="replace a tower that is there already")
    args = parser.parse_args(argv)
    try:
        make(args.data_dir, args.data, args.out, steps=args.steps, seed=args.seed, overwrite=args.overwrite)
    except (ValueError, OSError, NonFiniteError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted; nothing was written.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
