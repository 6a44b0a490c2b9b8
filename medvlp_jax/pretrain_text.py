"""A small BERT from a data set's own reports:  python -m medvlp_jax.pretrain_text --data cxr_phantom --data_dir data

Two stages on the findings and impressions of the training split, three minutes on two CPU cores. First masked language
modelling (arXiv 1810.04805, section 3.1, task 1, without sentence pairs), which knows words but not what a report says:
vectors of all texts lie close together. Then, while masking goes on, radiology section matching (CXR-BERT, arXiv
2204.09817, section 2.1): which impression belongs to which findings. Differences to that paper: the mean of the tokens
without a projection, temperature 0.1, and no shuffled sentences. The result is a folder in transformers layout,
which `text.weights` takes; `text.weights=auto` makes and finds it by itself where no other tower is installed.
The folder holds pieces of the reports' words: guard it like the data.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from medvlp_jax import compiler
from medvlp_jax.data import tokenizer as tokenizers
from medvlp_jax.data.masked_text import Batch, Corpus, Pairs
from medvlp_jax.data.pipeline import Source
from medvlp_jax.data.records import RecordSource
from medvlp_jax.data.text_cache import section_texts
from medvlp_jax.encoders.bert import BertConfig, BertForMaskedLM, pool
from medvlp_jax.interop import save_bert
from medvlp_jax.losses.contrastive import contrastive
from medvlp_jax.losses.masked_language import masked_language_sums
from medvlp_jax.metrics import NonFiniteError
from medvlp_jax.optim import decay_mask
from medvlp_jax.text_tower import PHANTOM, tower_folder

STEPS = 500
SHAPE = dict(hidden_size=128, num_hidden_layers=3, num_attention_heads=4, intermediate_size=512)
POSITIONS = 256
VOCABULARY = 2000  # pieces, for data sets without a packaged vocabulary
MATCHING_STEPS = 200
PAIRS = 64  # of a batch, while sections are matched
TEMPERATURE = 0.1


def pretrain(
    source: Source,
    tokenizer: tokenizers.Tokenizer,
    config: BertConfig,
    *,
    validation: Source | None = None,
    steps: int = STEPS,
    matching_steps: int = MATCHING_STEPS,
    pairs: int = PAIRS,
    seed: int = 0,
    learning_rate: float = 2e-3,
    tokens_per_batch: int = 4096,
    log_every: int = 50,
    say: Callable[[str], None] = print,
) -> tuple[dict[str, Any], dict[str, float]]:
    """Masked language modelling from scratch, then with section matching; AdamW, and in either stage a tenth of
    warm-up and one cosine to zero, from half the rate in the second.

    Args:
      source, validation: records with `findings` and `impression`; equal texts count once.
      config: shape of the BERT; `vocab_size` must be the tokenizer's.
      matching_steps, pairs: of the second stage, 0 steps for none; `pairs` reports with both sections make a batch.
        Where fewer have both, there is no second stage, and it is said.
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

    def masked(params: Any, batch: Batch) -> tuple[Array, Array]:
        logits_BxPxV = model.apply({"params": params}, batch.ids_BxL, batch.mask_BxL, positions=batch.positions_BxP)
        sums = masked_language_sums(logits_BxPxV, batch.targets_BxP, batch.weights_BxP)
        return sums[0] / sums[2], sums

    def matching(params: Any, batch: Batch) -> tuple[Array, Array]:
        def read(model: BertForMaskedLM) -> tuple[Array, Array]:
            hidden_BxLxE = model.bert(batch.ids_BxL, batch.mask_BxL).last
            return pool(hidden_BxLxE, batch.mask_BxL, "mean"), model.decode(hidden_BxLxE, batch.positions_BxP)

        vector_BxE, logits_BxPxV = model.apply({"params": params}, method=read)
        sums = masked_language_sums(logits_BxPxV, batch.targets_BxP, batch.weights_BxP)
        loss = contrastive(*jnp.split(vector_BxE, 2), temperature=TEMPERATURE, directions=(0.5, 0.5))
        return sums[0] / sums[2] + loss, jnp.append(sums, loss)

    none = jnp.zeros((1, 8), jnp.int32)
    params = jax.jit(model.init)(jax.random.key(seed), none, none)["params"]
    say(f"{len(corpus.rows)} distinct texts, {sum(map(len, corpus.rows))} pieces; {steps} steps")
    params = _stage(params, masked, corpus.train(seed), steps, learning_rate, log_every, say)
    if matching_steps:
        both = Pairs(source, tokenizer, config.max_position_embeddings)
        enough = both.batches_hold(pairs)
        plan = f"{matching_steps} steps that match them" if enough else f"fewer than {pairs} apart: none are matched"
        say(f"{len(both.rows)} distinct pairs of sections; {plan}")
        if enough:
            batches = both.train(seed, pairs)
            params = _stage(params, matching, batches, matching_steps, learning_rate / 2, log_every, say)
    scores = {}
    if validation is not None:
        held_out = Corpus(validation, tokenizer, config.max_position_embeddings, tokens_per_batch)
        evaluate, guess, sums = jax.jit(lambda p, batch: masked(p, batch)[1]), corpus.most_frequent(), np.zeros(4)
        for batch in held_out.once(seed):
            lucky = ((batch.targets_BxP == guess) * batch.weights_BxP).sum()
            sums += np.append(np.asarray(evaluate(params, batch)), lucky)
        scores = {"loss": sums[0] / sums[2], "accuracy": sums[1] / sums[2], "unigram_accuracy": sums[3] / sums[2]}
    return {"params": jax.device_get(params)}, scores


def _stage(
    params: Any,
    loss_fn: Callable[[Any, Batch], tuple[Array, Array]],
    batches: Iterator[Batch],
    steps: int,
    learning_rate: float,
    log_every: int,
    say: Callable[[str], None],
) -> Any:
    """The parameters after `steps` batches. loss_fn: loss and sums to log: those of `masked_language_sums`, and where
    sections are matched the loss of that."""
    rate = optax.warmup_cosine_decay_schedule(0.0, learning_rate, max(1, steps // 10), max(2, steps))
    tx = optax.adamw(rate, b2=0.98, weight_decay=0.01, mask=lambda params: decay_mask(params, "matrices"))

    def step_fn(state: Any, batch: Batch) -> tuple[Any, Array]:
        params, opt_state = state
        (_, sums), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), sums

    step_fn = compiler.jit(step_fn, donate_argnums=0)
    state = (params, tx.init(params))
    sums, tokens, logged, start = 0.0, 0, 0, time.monotonic()
    for step, batch in zip(range(1, steps + 1), batches, strict=False):
        state, new = step_fn(state, batch)
        sums, tokens = sums + new, tokens + int(batch.mask_BxL.sum())
        if step % log_every == 0 or step == steps:
            total, right, count, *match = np.asarray(sums)
            if not math.isfinite(total + sum(match)):
                raise NonFiniteError(f"The loss is not finite before step {step}; try a lower learning_rate.")
            line = f"step {step}/{steps}  loss {total / count:.3f}  masked accuracy {right / count:.1%}"
            line += f"  matching {match[0] / (step - logged):.3f}" if match else ""
            say(f"{line}  {tokens / (time.monotonic() - start):.0f} tokens/s")
            sums, tokens, logged, start = 0.0, 0, step, time.monotonic()
    return state[0]


def make(
    data_dir: str | os.PathLike[str],
    data: str,
    out: str | os.PathLike[str] | None = None,
    *,
    steps: int = STEPS,
    matching_steps: int = MATCHING_STEPS,
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
        lengths = {"steps": steps, "matching_steps": matching_steps}
        variables, scores = pretrain(train, tokenizer, config, validation=validation, **lengths, seed=seed, say=say)
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
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of masked language modelling, default: {STEPS}")
    told = f"of section matching, 0: none; default: {MATCHING_STEPS}"
    parser.add_argument("--matching_steps", type=int, default=MATCHING_STEPS, help=told)
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--overwrite", action="store_true", help="replace a tower that is there already")
    args = parser.parse_args(argv)
    try:
        lengths = {"steps": args.steps, "matching_steps": args.matching_steps}
        make(args.data_dir, args.data, args.out, **lengths, seed=args.seed, overwrite=args.overwrite)
    except (ValueError, OSError, NonFiniteError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted; nothing was written.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
