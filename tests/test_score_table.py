"""The printed table of scores."""

from medvlp_jax import score_table


def test_equal_reasons_are_said_once():
    skipped = {
        "zero_shot": {"Edema": "every image lacks it", "Fracture": "every image lacks it", "Pneumonia": "no prompt"},
        "knn": {"Edema": "every image lacks it", "Fracture": "every image lacks it", "Pneumonia": "no prompt"},
        "grounding": {"grounding": "no image has boxes"},
    }
    scores = {"scores": [], "skipped": skipped, "examples": 2, "patients": 1, "data": "d", "split": "test", "step": 1}
    lines = score_table.format_scores({**scores, "split_hash": "0", "public": False})
    assert lines[-3:-1] == [
        "zero_shot, knn left out: Edema, Fracture (every image lacks it); Pneumonia (no prompt)",
        "grounding left out: grounding (no image has boxes)",
    ]
