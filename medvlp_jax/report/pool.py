"""Test records through a trained run: the vectors, scores and maps that pictures are made of."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medvlp_jax import build
from medvlp_jax.data.labels import CHEXPERT_LABELS
from medvlp_jax.data.preprocess import decode_grey
from medvlp_jax.data.records import RecordSource, text_hash
from medvlp_jax.data.sections import study_texts
from medvlp_jax.data.text_cache import TextCache
from medvlp_jax.evaluators import prompts
from medvlp_jax.evaluators.pair_scores import pair_scores
from medvlp_jax.heatmap import similarity_map, unit
from medvlp_jax.methods.embeddings import default_section
from medvlp_jax.trained import Trained

SIZE = 1000  # records at most, the first of the split
BATCH = 32


class Pool(NamedTuple):
    """N test records. F: CHEXPERT_LABELS, NaN where a finding has no prompts.

    parts: per section image vectors N×D, text vectors N×D, flags N. report_N: equal numbers, equal reports.
    score_NxF: zero-shot score. map_NxhxwxF: what regions contribute to affirming minus denying cosine, or None.
    section: the text section whose space zero-shot scores and maps use. prompts: which ones were asked.
    """

    records: list[dict[str, Any]]
    view_NxSxSx1: NDArray[np.uint8]
    parts: list[tuple[NDArray, NDArray, NDArray]]
    report_N: NDArray[np.int64]
    labels_NxF: NDArray[np.int8]
    public_N: NDArray[np.bool_]
    score_NxF: NDArray[np.float64]
    map_NxhxwxF: NDArray[np.float32] | None
    aligned_NxD: NDArray[np.float32]
    section: str
    prompts: str


def embed(run: Trained, source: RecordSource, *, say: Callable[[str], None]) -> Pool:
    """Embeds the first records of a split, and the prompts that the run is evaluated with.

    Raises: FileNotFoundError for a prompt file that is not there; ValueError for a record that cannot be read.
    """
    count = min(len(source), SIZE)
    say(f"report    embedding {count} images of the {source.split} split")
    records = [source[i] for i in range(count)]
    view_NxSxSx1 = np.stack([run.view(decode_grey(record["image"])) for record in records])
    text = _texts(run, source, records)
    settings = run.config.get("evaluation", {})
    asked = settings.get("prompts", prompts.ENSEMBLE)
    pairs = prompts.load(asked)
    affirm_deny = _sides(run, pairs)
    section, image, maps = settings.get("section", ""), {}, []
    for start in range(0, count, BATCH):
        batch = view_NxSxSx1[start : start + BATCH]
        # Always full batches: one compilation.
        padded = np.concatenate([batch, np.repeat(batch[-1:], BATCH - len(batch), axis=0)])
        embedding = run.embed_images(padded)
        section = section or default_section(embedding.regions, embedding.aligned)
        for name, vector in embedding.aligned.items():
            image.setdefault(name, []).append(np.asarray(vector)[: len(batch), 0])
        if section in embedding.regions:
            maps.append(_maps(np.asarray(embedding.regions[section])[: len(batch), 0], affirm_deny[section]))
    image = {name: np.concatenate(parts) for name, parts in image.items()}
    names = [name for name in text if name in image]
    scores = {name: pair_scores(image[section], *sides).score_N for name, sides in affirm_deny[section].items()}
    return Pool(
        records=[{k: v for k, v in record.items() if k not in ("masks", "lung_mask")} for record in records],
        view_NxSxSx1=view_NxSxSx1,
        parts=[(image[name], *text[name][:2]) for name in names],
        report_N=np.unique(np.stack([text[name][2] for name in names]), axis=1, return_inverse=True)[1].reshape(-1),
        labels_NxF=np.stack([record["labels"] for record in records]),
        public_N=np.array([bool(record["public"]) for record in records]),
        score_NxF=_columns(scores, (count,)),
        map_NxhxwxF=np.concatenate(maps) if maps else None,
        aligned_NxD=unit(image[section]),
        section=section,
        prompts=asked if asked in (prompts.PLAIN, prompts.ENSEMBLE) else "a file of the user's",
    )


def _texts(run: Trained, source: RecordSource, records: Sequence[dict[str, Any]]) -> dict[str, tuple[NDArray, ...]]:
    """Per section: vectors N×D of the records' own texts, whether they have one, and the hash of the text or -1."""
    rule, sections = run.config.text, tuple(run.config.text.sections)
    rows = [study_texts(record, rule.missing, tuple(rule.report)) for record in records]
    texts = sorted({row[section] for row in rows for section in sections})
    folder = build.text_cache_folder(run.config, run.tower, source)
    cache = TextCache.open(folder, run.tower.key) if (folder / "complete").exists() else ()
    vectors = {text: cache.lookup(text) for text in texts if text in cache}  # it may have been made for other splits
    aligned = run.embed_texts(texts, vectors).aligned
    place = {text: i for i, text in enumerate(texts)}
    found = {}
    for section in sections:
        has_N = np.array([bool(row[f"has_{section}"]) for row in rows])
        vector_NxD = np.asarray(aligned[section])[[place[row[section]] for row in rows]]
        hash_N = np.array([text_hash(row[section]) if has else -1 for row, has in zip(rows, has_N, strict=True)])
        found[section] = (vector_NxD, has_N, hash_N)
    return found


def _sides(run: Trained, pairs: dict[str, prompts.Pair]) -> dict[str, dict[str, tuple[NDArray, NDArray]]]:
    """Per section and finding: vectors of the affirming and of the denying texts."""
    aligned = run.embed_texts(prompts.texts(pairs)).aligned
    return {section: prompts.split(pairs, np.asarray(vector_TxD)) for section, vector_TxD in aligned.items()}


def _maps(region_BxhxwxD: NDArray, sides: dict[str, tuple[NDArray, NDArray]]) -> NDArray[np.float32]:
    means = {name: [unit(side).mean(axis=0) for side in pair] for name, pair in sides.items()}
    maps = {name: similarity_map(region_BxhxwxD, affirm, deny) for name, (affirm, deny) in means.items()}
    return _columns(maps, region_BxhxwxD.shape[:-1])


def _columns(values: dict[str, NDArray], shape: tuple[int, ...]) -> NDArray:
    """Arrays by finding -> one, findings of CHEXPERT_LABELS last, NaN for those without."""
    nothing = np.full(shape, np.nan, np.float32)
    return np.stack([values.get(name, nothing) for name in CHEXPERT_LABELS], axis=-1)
