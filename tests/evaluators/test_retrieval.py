"""Recalls and ranks against the definition: every order of the tied candidates, by enumeration."""

import itertools
import math

import numpy as np
import pytest

from medvlp_jax.evaluators import retrieval
from medvlp_jax.evaluators.context import Context, Embedded
from medvlp_jax.methods.embeddings import ImageEmbedding, TextEmbedding

DIRECTIONS = ("image_to_text", "text_to_image")


def split(hashes, images, texts, has=None):
    """A split of N examples, by section: text hashes, image vectors N×D, a text vector per hash, texts that exist."""
    count = len(next(iter(hashes.values())))
    has = {s: np.ones(count, bool) for s in hashes} | (has or {})
    texts = {s: np.stack([np.asarray(texts[s][h], np.float32) for h in hashes[s]]) for s in hashes}
    images = {s: np.stack([images[s], np.full_like(images[s], 7)], axis=1) for s in hashes}  # a second, useless view

    def embedded():
        for start in range(0, count, 3):
            rows = slice(start, start + 3)
            fields = {f"has_{s}": np.asarray(has[s])[rows].astype(np.int32) for s in hashes}
            yield Embedded(
                ImageEmbedding({s: x[rows] for s, x in images.items()}, np.zeros((0, 2, 1)), {}),
                TextEmbedding({s: x[rows] for s, x in texts.items()}),
                fields | {f"{s}_hash": np.asarray(hashes[s])[rows] for s in hashes},
            )

    return Context(embedded=embedded, terms=lambda: iter(()))


def one_hot(hashes):
    """Vectors with which every image of a text finds it and nothing else comes close."""
    axes = {h: np.eye(len(set(hashes)), dtype=np.float32)[i] for i, h in enumerate(sorted(set(hashes)))}
    return np.stack([axes[h] for h in hashes]), axes


def cosine(x, y):
    return float(np.dot(x, y)) / max(math.sqrt(np.dot(x, x) * np.dot(y, y)), 1e-12)


def place_of_first(scores, right):
    """Rank of the best-placed right candidate under every order of the candidates (one value per order)."""
    orders = np.array(list(itertools.permutations(range(len(scores)))))
    ranked = np.take_along_axis(orders, np.argsort(-np.asarray(scores)[orders], axis=1, kind="stable"), axis=1)
    return 1 + np.argmax(np.isin(ranked, np.flatnonzero(right)), axis=1)


def reference(name, keys, scores):
    """The scores of one section: `keys`, the text of each image; `scores[i][key]`, of image i against a text."""
    texts = sorted(set(keys), key=keys.index)
    queries = {
        "image_to_text": [
            ([row[t] for t in texts], [t == key for t in texts]) for row, key in zip(scores, keys, strict=True)
        ],
        "text_to_image": [([row[t] for row in scores], [t == key for key in keys]) for t in texts],
    }
    expected = {f"retrieval/{name}/images": len(keys), f"retrieval/{name}/texts": len(texts)}
    for direction, pairs in queries.items():
        places = [place_of_first(np.round(values, 6), right) for values, right in pairs]
        guesses = [place_of_first(np.zeros(len(values)), right) for values, right in pairs]
        for k in (1, 5, 10):
            expected[f"retrieval/{name}/{direction}_R@{k}"] = 100 * np.mean([np.mean(p <= k) for p in places])
            expected[f"retrieval/{name}/{direction}_chance_R@{k}"] = 100 * np.mean([np.mean(p <= k) for p in guesses])
        expected[f"retrieval/{name}/{direction}_median_rank"] = np.median([p.mean() for p in places])
    return expected


@pytest.mark.parametrize("seed", range(4))
def test_equals_the_enumeration_with_ties_duplicates_and_missing_sections(seed, monkeypatch):
    monkeypatch.setattr(retrieval, "BLOCK", 2)
    rng = np.random.default_rng(seed)
    sections, count = ("findings", "impression"), 7
    hashes = {s: rng.integers(10, 14 + 3 * i, count) for i, s in enumerate(sections)}
    has = {s: rng.random(count) < 0.8 for s in sections}
    # Few, coarse directions: many candidates tie.
    images = {s: rng.integers(-1, 2, (count, 2)).astype(np.float32) for s in sections}
    texts = {s: {h: rng.integers(-1, 2, 2) * rng.uniform(1, 3) for h in set(hashes[s])} for s in sections}

    expected = {}
    for s in sections:
        rows = np.flatnonzero(has[s])
        table = [{h: cosine(images[s][i], texts[s][h]) for h in set(hashes[s][rows])} for i in rows]
        expected |= reference(s, list(hashes[s][rows]), table)
    rows = [i for i in range(count) if has["findings"][i] or has["impression"][i]]
    keys = [tuple(int(hashes[s][i]) if has[s][i] else None for s in sections) for i in rows]
    table = [
        {
            key: np.mean(
                [cosine(images[s][i], texts[s][h]) for s, h in zip(sections, key, strict=True) if h is not None]
            )
            for key in set(keys)
        }
        for i in rows
    ]
    expected |= reference("report", keys, table)
    assert retrieval.run(split(hashes, images, texts, has)) == pytest.approx(expected, abs=1e-6)


def test_equals_sorting_when_nothing_ties():
    rng = np.random.default_rng(9)
    count, hashes = 60, np.repeat(np.arange(45), [2] * 15 + [1] * 30)
    order = rng.permutation(count)
    hashes = hashes[order]
    texts = {h: rng.normal(size=6) for h in range(45)}
    images = np.stack([texts[h] for h in hashes]) + rng.normal(size=(count, 6))
    scores = retrieval.run(split({"impression": hashes}, {"impression": images}, {"impression": texts}))
    table = np.array([[cosine(image, texts[h]) for h in range(45)] for image in images])
    own = [list(np.argsort(-row)).index(h) + 1 for row, h in zip(table, hashes, strict=True)]
    first = [min(list(np.argsort(-table[:, h])).index(i) + 1 for i in np.flatnonzero(hashes == h)) for h in range(45)]
    for direction, ranks in zip(DIRECTIONS, (own, first), strict=True):
        assert 1 < np.median(ranks) < 12  # neither perfect nor chance
        assert scores[f"retrieval/impression/{direction}_median_rank"] == np.median(ranks)
        for k in (1, 5, 10):
            assert scores[f"retrieval/impression/{direction}_R@{k}"] == pytest.approx(
                100 * np.mean(np.array(ranks) <= k)
            )


def test_by_hand():
    # Image 0 ranks its text second, images 1 and 2 first; text 8 is carried by images 1 and 2.
    images = np.array([[0.6, 0.8], [0.0, 1.0], [0.28, 0.96]], np.float32)
    texts = {7: [1, 0], 8: [0, 1]}
    scores = retrieval.run(split({"impression": [7, 8, 8]}, {"impression": images}, {"impression": texts}))
    assert scores == pytest.approx(
        {
            "retrieval/impression/images": 3,
            "retrieval/impression/texts": 2,
            "retrieval/impression/image_to_text_R@1": 200 / 3,
            "retrieval/impression/image_to_text_chance_R@1": 50,
            "retrieval/impression/image_to_text_median_rank": 1,
            "retrieval/impression/text_to_image_R@1": 100,
            "retrieval/impression/text_to_image_chance_R@1": 50,  # 1/3 and 2/3
            "retrieval/impression/text_to_image_median_rank": 1,
            **{
                f"retrieval/impression/{direction}{guess}_R@{k}": 100
                for direction, guess, k in itertools.product(DIRECTIONS, ("", "_chance"), (5, 10))
            },
        }
    )


def test_perfect_vectors_of_any_length_give_100_percent():
    hashes = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 8, 7, 11, 12]
    images, texts = one_hot(hashes)
    images *= np.linspace(1e-6, 1e6, len(hashes), dtype=np.float32)[:, None]
    scores = retrieval.run(split({"findings": hashes}, {"findings": images}, {"findings": texts}))
    for direction in DIRECTIONS:
        assert scores[f"retrieval/findings/{direction}_R@1"] == 100
        assert scores[f"retrieval/findings/{direction}_median_rank"] == 1
        assert scores[f"retrieval/findings/{direction}_chance_R@1"] < 13
    assert scores["retrieval/findings/texts"] == 11
    assert "retrieval/findings/not_finite" not in scores


@pytest.mark.parametrize("broken", ["collapsed", "zero", "nan images", "inf images", "nan texts"])
def test_collapsed_and_broken_vectors_score_like_guessing(broken):
    hashes = [0, 1, 2, 2, 3, 4, 5, 6, 7, 7, 7, 8]
    images, texts = one_hot(hashes)
    if broken == "nan texts":
        texts = {h: np.full(9, np.nan) for h in texts}
    else:
        images[:] = {"collapsed": 1.0, "zero": 0.0, "nan images": np.nan, "inf images": np.inf}[broken]
    scores = retrieval.run(split({"findings": hashes}, {"findings": images}, {"findings": texts}))
    for direction, k in itertools.product(DIRECTIONS, (1, 5, 10)):
        chance = scores[f"retrieval/findings/{direction}_chance_R@{k}"]
        assert scores[f"retrieval/findings/{direction}_R@{k}"] == pytest.approx(chance)
    assert scores["retrieval/findings/image_to_text_median_rank"] == 5  # of 9 texts
    assert scores["retrieval/findings/text_to_image_median_rank"] == 6.5  # of 12 images, most texts have one
    assert scores.get("retrieval/findings/not_finite") == {"nan texts": 9, "nan images": 12, "inf images": 12}.get(
        broken
    )


def test_one_broken_image_is_counted_and_finds_nothing():
    hashes = list(range(8))
    images, texts = one_hot(hashes)
    images[3, 0] = np.nan
    scores = retrieval.run(split({"findings": hashes}, {"findings": images}, {"findings": texts}))
    assert scores["retrieval/findings/not_finite"] == 1
    assert scores["retrieval/findings/image_to_text_R@1"] == pytest.approx(100 * (7 + 1 / 8) / 8)
    assert scores["retrieval/findings/text_to_image_R@1"] == pytest.approx(100 * 7 / 8)
    assert scores["retrieval/findings/text_to_image_R@5"] == pytest.approx(100 * 7 / 8)  # the broken image is last


def test_one_broken_text_ranks_last():
    hashes = list(range(8))
    images, texts = one_hot(hashes)
    texts[3][:] = np.nan
    scores = retrieval.run(split({"findings": hashes}, {"findings": images}, {"findings": texts}))
    assert scores["retrieval/findings/not_finite"] == 1
    assert scores["retrieval/findings/image_to_text_R@5"] == pytest.approx(100 * 7 / 8)
    assert scores["retrieval/findings/text_to_image_R@1"] == pytest.approx(100 * (7 + 1 / 8) / 8)


def test_missing_sections_are_no_queries_and_no_candidates():
    hashes = [1, 2, 3, 0, 0, 0]
    images, texts = one_hot(hashes)
    images[3:] = texts[1] + texts[2] + texts[3]  # in the way of every text, were they candidates
    texts[0] = np.full(4, np.nan)  # never looked at
    has = {"findings": [True, True, True, False, False, False]}
    scores = retrieval.run(split({"findings": hashes}, {"findings": images}, {"findings": texts}, has))
    assert scores["retrieval/findings/images"] == scores["retrieval/findings/texts"] == 3
    assert scores["retrieval/findings/text_to_image_R@1"] == scores["retrieval/findings/image_to_text_R@1"] == 100
    assert "retrieval/findings/not_finite" not in scores


def test_sections_without_two_texts_are_left_out():
    hashes = {"findings": [5, 5, 5, 5], "impression": [1, 2, 3, 3]}
    vectors = {s: one_hot(h) for s, h in hashes.items()}
    images, texts = ({s: pair[i] for s, pair in vectors.items()} for i in (0, 1))
    names = {name.split("/")[1] for name in retrieval.run(split(hashes, images, texts))}
    assert names == {"impression", "report"}
    nothing = {s: np.zeros(4, bool) for s in hashes}
    assert retrieval.run(split(hashes, images, texts, nothing)) == {}


def test_reports_are_shared_when_both_sections_are():
    hashes = {"findings": [1, 1, 1, 2], "impression": [7, 7, 8, 8]}
    has = {"impression": [True, True, True, False]}
    vectors = {s: one_hot(h) for s, h in hashes.items()}
    images, texts = ({s: pair[i] for s, pair in vectors.items()} for i in (0, 1))
    scores = retrieval.run(split(hashes, images, texts, has))
    assert scores["retrieval/report/images"] == 4
    assert scores["retrieval/report/texts"] == 3
    assert scores["retrieval/report/image_to_text_R@1"] == 100


def test_chance_of_hit_equals_enumeration():
    for total in range(1, 8):
        for relevant, k in itertools.product(range(1, total + 1), range(1, total + 3)):
            picks = list(itertools.combinations(range(total), min(k, total)))
            expected = np.mean([min(pick) < relevant for pick in picks])
            assert retrieval.chance_of_hit(relevant, total, k) == pytest.approx(expected), (relevant, total, k)


def test_chance_of_hit_of_large_pools():
    # Differences of log-factorials of this size leave nine decimals.
    assert retrieval.chance_of_hit(1, 100_000, 10) == pytest.approx(1e-4, abs=5e-9)
    expected = 1 - math.comb(49_997, 5) / math.comb(50_000, 5)
    assert retrieval.chance_of_hit(3, 50_000, 5) == pytest.approx(expected, abs=5e-9)
