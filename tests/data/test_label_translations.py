"""A set's own words to CheXpert names: what each relation says, and the tables of all sets."""

import importlib

import pytest

from medvlp_jax.data import label_translations as translations
from medvlp_jax.data.data_sets import BUILDERS
from medvlp_jax.data.label_translations import KIND, MAYBE, NONE, SAME, WIDER, Row, translate
from medvlp_jax.data.labels import CHEXPERT_LABELS

ROWS = (
    Row(("Effusion",), SAME, "Pleural Effusion", "-"),
    Row(("Mass", "Nodule"), SAME, "Lung Lesion", "-"),
    Row(("Cavity",), MAYBE, "Lung Lesion", "-"),
    Row(("Thickening",), KIND, "Pleural Other", "-"),
    Row(("Edema or haze",), WIDER, "Edema", "-"),
    Row(("Hernia",), NONE, "", "-"),
)


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({"Effusion": -1, "Mass": 0, "Nodule": 1, "Hernia": 1}, {"Pleural Effusion": -1, "Lung Lesion": 1}),
        ({"Mass": 0, "Nodule": 0}, {"Lung Lesion": 0}),
        ({"Mass": 0, "Nodule": 0, "Cavity": 0}, {"Lung Lesion": 0}),
        ({"Mass": 0, "Nodule": 0, "Cavity": 1}, {}),
        ({"Mass": 0, "Nodule": 0, "Cavity": -1}, {}),
        ({"Mass": 1, "Cavity": 1}, {"Lung Lesion": 1}),
        ({"Cavity": 1}, {}),
        ({"Thickening": 0}, {}),
        ({"Thickening": -1}, {}),
        ({"Thickening": 1}, {"Pleural Other": 1}),
        ({"Edema or haze": 1}, {}),
        ({"Edema or haze": 0}, {"Edema": 0}),
        ({"Unheard of": 1}, {}),
    ],
)
def test_relations(own, expected):
    assert translate(own, ROWS) == expected


def tables():
    pytest.importorskip("tensorflow_datasets")
    modules = {name: importlib.import_module(path) for name, path in BUILDERS.items()}
    return {name: (module, module.LABELS) for name, module in modules.items() if hasattr(module, "LABELS")}


def test_tables_of_the_sets():
    """Every row names one of the fourteen and says why; the page of the set holds the table."""
    found = tables()
    assert len(found) == 8
    for name, (module, rows) in found.items():
        for row in rows:
            assert isinstance(row.own, tuple), name
            assert row.relation in translations.RELATIONS
            assert (row.name in CHEXPERT_LABELS) == (row.relation != NONE), (name, row)
            assert row.why
        page = importlib.resources.files(module.__package__).joinpath("README.md").read_text("utf-8")
        assert translations.markdown(rows) in page, name
