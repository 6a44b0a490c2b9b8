"""Recalls and ranks against the definition: every order of the tied candidates, by enumeration."""

import itertools
import math

import numpy as np
import pytest

from medvlp_jax.evaluators import retrieval
from tests.evaluators import fake

DIRECTIONS = ("image_to_text", "text_to_image")


def split(hashes, images, texts, has=None, **fields):
    """A split of N examples, by section: text hashes, image vectors N×D, a text vector per hash, texts that exist."""
    count = len(next(iter(hashes.values())))
    has = {s: np.ones(count, bool) for s in hashes} | (has or {})
    texts = {s: np.stack([np.asarray(texts[s][h], np.float32) for h in hashes[s]]) for s in hashes}
    fields |= {f"has_{s}": np.asarray(has[s]).astype(np.int32) for s in hashes}
    fields |= {f"{s}_hash": np.asarray(hashes[s]) for s in hashes}
    return fake.context({"test": fake.features(images, texts, **fields)}, resamples=50)


def run(context):
    """Score name -> value, with the chance level of a recall under its own name."""
    found = {}
    for score in retrieval.run(context).scores:
        found[score.name] = score.value
        if score.chance is not None and "_R@" in score.name:
            found[score.name.replace("_R@", "_chance_R@")] = score.chance
    return found


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
    assert run(split(hashes, images, texts, has)) == pytest.approx(expected, abs=1e-6)


def test_equals_sorting_when_nothing_ties():
    rng = np.random.default_rng(9)
    count, hashes = 60, np.repeat(np.arange(45), [2] * 15 + [1] * 30)
    order = rng.permutation(count)
    hashes = hashes[order]
    texts = {h: rng.normal(size=6) for h in range(45)}
    images = np.stack([texts[h] for h in hashes]) + rng.normal(size=(count, 6))
    scores = run(split({"impression": hashes}, {"impression": images}, {"impression": texts}))
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
    scores = run(split({"impression": [7, 8, 8]}, {"impression": images}, {"impression": texts}))
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
    scores = run(split({"findings": hashes}, {"findings": images}, {"findings": texts}))
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
    scores = run(split({"findings": hashes}, {"findings": images}, {"findings": texts}))
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
    scores = run(split({"findings": hashes}, {"findings": images}, {"findings": texts}))
    assert scores["retrieval/findings/not_finite"] == 1
    assert scores["retrieval/findings/image_to_text_R@1"] == pytest.approx(100 * (7 + 1 / 8) / 8)
    assert scores["retrieval/findings/text_to_image_R@1"] == pytest.approx(100 * 7 / 8)
    assert scores["retrieval/findings/text_to_image_R@5"] == pytest.approx(100 * 7 / 8)  # the broken image is last


def test_one_broken_text_ranks_last():
    hashes = list(range(8))
    images, texts = one_hot(hashes)
    texts[3][:] = np.nan
    scores = run(split({"findings": hashes}, {"findings": images}, {"findings": texts}))
    assert scores["retrieval/findings/not_finite"] == 1
    assert scores["retrieval/findings/image_to_text_R@5"] == pytest.approx(100 * 7 / 8)
    assert scores["retrieval/findings/text_to_image_R@1"] == pytest.approx(100 * (7 + 1 / 8) / 8)


def test_missing_sections_are_no_queries_and_no_candidates():
    hashes = [1, 2, 3, 0, 0, 0]
    images, texts = one_hot(hashes)
    images[3:] = texts[1] + texts[2] + texts[3]  # in the way of every text, were they candidates
    texts[0] = np.full(4, np.nan)  # never looked at
    has = {"findings": [True, True, True, False, False, False]}
    scores = run(split({"findings": hashes}, {"findings": images}, {"findings": texts}, has))
    assert scores["retrieval/findings/images"] == scores["retrieval/findings/texts"] == 3
    assert scores["retrieval/findings/text_to_image_R@1"] == scores["retrieval/findings/image_to_text_R@1"] == 100
    assert "retrieval/findings/not_finite" not in scores


def test_sections_without_two_texts_are_left_out():
    hashes = {"findings": [5, 5, 5, 5], "impression": [1, 2, 3, 3]}
    vectors = {s: one_hot(h) for s, h in hashes.items()}
    images, texts = ({s: pair[i] for s, pair in vectors.items()} for i in (0, 1))
    names = {name.split("/")[1] for name in run(split(hashes, images, texts))}
    assert names == {"impression", "report"}
    nothing = {s: np.zeros(4, bool) for s in hashes}
    assert run(split(hashes, images, texts, nothing)) == {}


def test_reports_are_shared_when_both_sections_are():
    hashes = {"findings": [1, 1, 1, 2], "impression": [7, 7, 8, 8]}
    has = {"impression": [True, True, True, False]}
    vectors = {s: one_hot(h) for s, h in hashes.items()}
    images, texts = ({s: pair[i] for s, pair in vectors.items()} for i in (0, 1))
    scores = run(split(hashes, images, texts, has))
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


def test_class_precision_by_hand():
    # Six images with one finding each, one with two: it is neither query nor candidate.
    rng = np.random.default_rng(0)
    kinds = np.array([0, 0, 0, 1, 1, 1] * 2)
    findings = fake.labels(Edema=(kinds == 0).astype(int), Pneumothorax=(kinds == 1).astype(int))
    findings = np.concatenate([findings, fake.labels(Edema=[1], Pneumothorax=[1])])
    hashes = list(range(13))
    images, texts = rng.normal(size=(13, 4)), {h: rng.normal(size=4) for h in hashes}
    found = fake.by_name(
        retrieval.run(split({"findings": hashes}, {"findings": images}, {"findings": texts}, labels=findings))
    )
    table = np.array([[cosine(image, texts[h]) for h in range(12)] for image in images[:12]])
    for k in (1, 5, 10):
        expected = np.mean([np.mean(kinds[np.argsort(-row)[:k]] == kinds[i]) for i, row in enumerate(table)])
        score = found[f"retrieval/findings/image_to_text_P@{k}"]
        assert score.value == pytest.approx(100 * expected)
        assert (score.chance, score.count) == (50, 12)


def test_class_precision_of_ties_is_their_expectation():
    hashes = list(range(12))
    findings = fake.labels(Edema=[1, 0, 0, 0] * 3, Pneumothorax=[0, 1, 1, 1] * 3)
    images, texts = np.ones((12, 3)), {h: np.ones(3) for h in hashes}
    found = fake.by_name(
        retrieval.run(split({"findings": hashes}, {"findings": images}, {"findings": texts}, labels=findings))
    )
    for k in (1, 5, 10):
        score = found[f"retrieval/findings/image_to_text_P@{k}"]
        assert score.value == pytest.approx(score.chance)


def test_intervals_hold_the_value_and_widen_when_images_share_patients():
    rng = np.random.default_rng(1)
    hashes = list(range(200))
    texts = {h: rng.normal(size=8) for h in hashes}
    hard = np.repeat(rng.permutation([0.1, 9.0] * 5), 20)  # ten patients, alike within
    images = np.stack([texts[h] for h in hashes]) + hard[:, None] * rng.normal(size=(200, 8))
    widths = []
    for patients in (np.arange(200), np.arange(200) // 20):
        context = split({"findings": hashes}, {"findings": images}, {"findings": texts}, patient_hash=patients)
        score = fake.by_name(retrieval.run(context))["retrieval/findings/image_to_text_R@10"]
        low, high = score.interval
        assert low < score.value < high
        widths.append(high - low)
    assert widths[1] > 1.5 * widths[0]


def test_median_rank_of_resamples_equals_repeating_the_rows():
    rng = np.random.default_rng(2)
    ranks, weights = rng.integers(1, 9, 11).astype(float), rng.integers(0, 4, (20, 11))
    expected = [np.median(np.repeat(ranks, row)) for row in weights]
    np.testing.assert_allclose(retrieval._weighted_medians(ranks, weights), expected)
