"""A context made of plain arrays: evaluators tested without a model."""

import dataclasses

import numpy as np

from medvlp_jax.data.labels import CHEXPERT_LABELS
from medvlp_jax.evaluators import Context, Features, Result, Settings


def labels(**columns):
    """N×14 labels, not mentioned but for the named findings (`Pleural_Effusion=[1, 0, -1]`)."""
    count = len(next(iter(columns.values())))
    table = np.full((count, len(CHEXPERT_LABELS)), -2, np.int8)
    for name, states in columns.items():
        table[:, CHEXPERT_LABELS.index(name.replace("_", " "))] = states
    return table


def features(image=None, text=None, pooled=None, pixels=None, regions=None, boxed=(), **fields):
    """Features of N images; what is not given is empty."""
    count = len(next(iter([*(image or {}).values(), *([pooled] if pooled is not None else []), *fields.values()])))
    return Features(
        image=image or {},
        text=text or {},
        pooled_NxC=np.zeros((count, 1)) if pooled is None else np.asarray(pooled, np.float32),
        pixels_NxP=np.zeros((count, 4), np.float32) if pixels is None else np.asarray(pixels, np.float32),
        regions=regions or {},
        boxed_M=np.asarray(boxed, np.int64),
        fields={"index": np.arange(count), **{k: np.asarray(v) for k, v in fields.items()}},
    )


def context(splits, *, texts=None, terms=(), records=None, baselines=False, local=None, **settings):
    """A context over `{split: Features}`; `texts` gives the vector of a text, in every section."""

    def embed_texts(asked):
        vectors = np.stack([texts(text) for text in asked])
        return dict.fromkeys(next(iter(splits.values())).image, vectors)

    return Context(
        features=splits.__getitem__,
        terms=lambda split: iter(terms),
        embed_texts=embed_texts,
        record=lambda split, index: records[index],
        view_mask=lambda mask: mask,
        settings=dataclasses.replace(Settings(), **settings),
        baselines=baselines,
        local_scores=local or (lambda split, asked: None),
    )


def values(result: Result) -> dict[str, float]:
    """Score name -> value."""
    return {score.name: score.value for score in result.scores}


def by_name(result: Result):
    """Score name -> score."""
    return {score.name: score for score in result.scores}
