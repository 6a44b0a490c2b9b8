"""Scores by protocol, what stands first, which run is clearly best, how numbers look."""

import json

import fabricated
import pytest

from medvlp_jax.report import scores


@pytest.fixture
def read(tmp_path):
    def read(content):
        path = tmp_path / "scores.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return scores.read_scores(path)

    return read


def names(rows):
    return [row.name for row in rows]


def test_protocols_in_order_with_headline_numbers_first(read):
    groups = {group.protocol: group for group in read(fabricated.scores()).groups}
    assert list(groups) == ["zero_shot", "retrieval", "grounding", "linear_probe", "calibration", "loss"]
    # The whole report stands before its sections.
    assert names(groups["retrieval"].headline) == [
        "retrieval/report/image_to_text_R@10",
        "retrieval/findings/image_to_text_R@10",
    ]
    assert "retrieval/report/image_to_text_R@1" in names(groups["retrieval"].rest)
    assert groups["retrieval"].paragraph == "An image must find its own text."
    assert groups["loss"].paragraph == "Mean over batches."
    assert names(groups["loss"].headline) == ["loss"]
    assert groups["zero_shot"].skipped == {"Fracture": "no positive image"}


def test_published_variants_never_stand_in_one_table_with_others(read):
    zero_shot = read(fabricated.scores()).groups[0]
    assert names(zero_shot.published) == ["zero_shot/f1_test_threshold/mean"]
    assert all(s.variant != "as_published" for s in [*zero_shot.headline, *zero_shot.rest])


def test_an_unknown_protocol_shows_all_its_scores_and_nan_is_none(read):
    calibration = next(g for g in read(fabricated.scores()).groups if g.protocol == "calibration")
    assert names(calibration.headline) == ["calibration/ece", "calibration/brier"]
    assert calibration.headline[1].value is None
    assert calibration.title == "Calibration"


def test_odd_rows_are_read_as_far_as_they_go(read):
    rows = [
        {"name": "x/y"},
        {"name": "a/b", "value": "7", "interval": [1], "count": float("inf")},
        {"value": 1},
        "no row",
        {"name": "a/c", "value": True, "interval": [0.1, None]},
    ]
    found = read(fabricated.scores(rows, protocols=None, skipped=None)).scores
    assert names(found) == ["x/y", "a/b", "a/c"]
    assert all(s.value is None and s.interval is None and s.count is None for s in found)


@pytest.mark.parametrize(
    ("content", "says"), [("{", "damaged"), ("[]", "another layout"), ('{"trained": {"loss": 1}}', "another layout")]
)
def test_damaged_files_say_so(read, content, says):
    with pytest.raises(ValueError, match=says):
        read(content)


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("zero_shot/auc/mean", 0.9341, "0.934"),
        ("retrieval/report/image_to_text_R@10", 29.47, "29.5 %"),
        ("retrieval/report/image_to_text_R@10", -0.0001, "0.0 %"),
        ("retrieval/report/images", 1604.0, "1,604"),
        ("retrieval/report/image_to_text_median_rank", 34.5, "34.5"),
        ("grounding/cnr/mean", -0.7, "−0.700"),
        ("loss", 33.536, "33.54"),
        ("loss/read", 0.5, "0.5"),
        ("zero_shot/auc/mean", None, "–"),
    ],
)
def test_digits(name, value, shown):
    assert scores.show(name, value) == shown


def test_labels_and_scales():
    make = lambda name: scores.Score(name.partition("/")[0], name, 0.5)  # noqa: E731
    assert make("retrieval/report/image_to_text_R@10").label == "report · image to text R@10"
    assert make("zero_shot/auc_mean_of_logits/Pleural Effusion").label == "AUC mean of logits · Pleural Effusion"
    assert make("loss").label == "loss"
    assert (make("zero_shot/auc/mean").limit, make("retrieval/report/x_P@5").limit) == (1.0, 100.0)
    assert make("grounding/cnr/mean").limit is None
    assert [make(n).better for n in ("zero_shot/mcc/mean", "loss/read", "x/unheard_of", "retrieval/report/images")] == [
        *(1, -1, 0, 0)
    ]


def best(name, *rows):
    found = [None if r is None else scores.Score(name.partition("/")[0], name, r[0], r[1]) for r in rows]
    return scores.clearly_best(found)


def test_best_is_marked_only_where_intervals_are_apart():
    name = "zero_shot/auc/mean"
    assert best(name, (0.7, (0.68, 0.72)), (0.8, (0.78, 0.82))) == 1
    assert best(name, (0.7, (0.68, 0.72)), (0.73, (0.71, 0.75))) is None
    assert best(name, (0.7, (0.68, 0.72)), (0.73, (0.72, 0.75))) is None  # they touch
    # Apart from the worst, not from the second.
    assert best(name, (0.5, (0.49, 0.51)), (0.8, (0.78, 0.82)), (0.81, (0.79, 0.83))) is None
    assert best(name, (0.7, None), (0.8, (0.78, 0.82))) is None
    assert best(name, (0.7, (0.68, 0.72)), None) is None
    assert best("loss", (20.0, (19.0, 21.0)), (30.0, (29.0, 31.0))) == 0
    assert best("calibration/ece", (0.1, (0.09, 0.11)), (0.3, (0.29, 0.31))) is None  # which way is better?


def test_side_by_side_has_every_score_of_every_run(read):
    one = read(fabricated.scores())
    other = read(fabricated.scores([fabricated.score("zero_shot/auc/mean", 0.5, [0.4, 0.6]), *fabricated.SCORES[-1:]]))
    tables = {
        group.protocol: (headline, rest) for group, headline, rest in scores.side_by_side([one, other], comparable=True)
    }
    auc = tables["zero_shot"][0][0]
    assert (auc.label, auc.best, [s.value for s in auc.scores]) == ("AUC · mean", 0, [0.934, 0.5])
    assert tables["retrieval"][0][0].scores[1] is None
    assert any(row.label.endswith("(as published)") for row in tables["zero_shot"][1])
    unmarked = scores.side_by_side([one, other], comparable=False)
    assert all(row.best is None for _, headline, rest in unmarked for row in [*headline, *rest])
