"""Text and labels of a record under the settings of a build. All texts are invented."""

import pytest

from medvlp_jax.data import film_records, record_text
from tfds_builders.testing import settings

ITEM = {
    "findings": "Small left effusion,  as on XXXX XXXX. No pneumothorax.",
    "impression": "Pneumonia cannot be excluded.",
    "report": "FINDINGS: as on XXXX XXXX.\nIMPRESSION: x",
}
READ = {"Pneumonia": -1, "Pneumothorax": 0, "Pleural Effusion": 1}


def fields(item=None, **changes):
    return record_text.text_fields(ITEM if item is None else item, settings(**changes))


def test_by_default_text_is_as_it_was():
    found = fields({**ITEM, "labels": {"Edema": 1}})
    assert {name: found[name] for name in ITEM} == ITEM
    assert (found["labels"], found["facts"]) == ({"Edema": 1}, [])
    assert found["sentences"] == ["Small left effusion, as on XXXX XXXX.", "No pneumothorax."]


@pytest.mark.parametrize(
    ("setting", "own", "expected", "fact"),
    [
        ("rules", {"Edema": 1}, READ, "labels by rules"),
        ("fill", {"Edema": 1}, {"Edema": 1}, "labels the set's own"),
        ("fill", {}, READ, "labels by rules"),
    ],
)
def test_labels_by_rules(setting, own, expected, fact):
    for cleaning in ("none", "gloria"):  # labels are read before the full stops go
        found = fields({**ITEM, "labels": own}, labels=setting, cleaning=cleaning)
        assert (found["labels"], found["facts"]) == (expected, [fact])


def test_rules_need_text():
    assert fields({"labels": {"Edema": 1}}, labels="rules")["labels"] == {}
    assert fields({"labels": {"Edema": 1}}, labels="rules")["facts"] == ["labels none, no text"]
    assert fields({}, labels="fill")["facts"] == ["labels none"]


def test_cleaning_and_removed_words():
    found = fields(cleaning="gloria", deid="drop", sentences="gloria")
    assert found["findings"] == "small left effusion as on no pneumothorax"
    assert found["sentences"] == ["small left effusion as on", "no pneumothorax"]
    assert found["report"] == "FINDINGS: as on.\nIMPRESSION: x"
    assert fields(deid="unify")["findings"].endswith("as on ___. No pneumothorax.")


def test_phrases_keep_their_places():
    found = fields({"sentences": ["XXXX", "Left effusion."]}, deid="drop", cleaning="gloria")
    assert found["sentences"] == ["", "left effusion"]


def test_values_that_do_not_exist():
    config = settings()
    film_records.check_settings(config)
    for name, choices in record_text.CHOICES.items():
        config.__dict__[name] = "x"
        with pytest.raises(ValueError, match=f"{name}='x'; choices: {choices[0]}"):
            film_records.check_settings(config)
        config.__dict__[name] = choices[0]
