"""Label names, states and the reading of label cells."""

import math

import numpy as np
import pytest

from medvlp_jax.data import labels


def test_names_are_the_fourteen_in_chexpert_order():
    assert len(set(labels.CHEXPERT_LABELS)) == 14
    assert labels.CHEXPERT_LABELS[0] == "No Finding"
    assert labels.CHEXPERT_LABELS[-1] == "Support Devices"
    assert set(labels.CHEXPERT_COMPETITION) < set(labels.CHEXPERT_LABELS)


@pytest.mark.parametrize("name", ["Pleural Effusion", "pleural effusion", " Pleural_Effusion ", "Effusion"])
def test_position_forgives_spelling(name):
    assert labels.CHEXPERT_LABELS[labels.position(name)] == "Pleural Effusion"


def test_airspace_opacity_is_lung_opacity():
    assert labels.position("Airspace Opacity") == labels.position("Lung Opacity")


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'Effusionn'.*No Finding.*Support Devices"):
        labels.position("Effusionn")


def test_vector_and_states_are_inverse():
    states = {"Edema": labels.PRESENT, "Fracture": labels.ABSENT, "Pneumonia": labels.UNCERTAIN}
    vector = labels.label_vector(states)
    assert vector.dtype == np.int8
    assert vector.shape == (14,)
    assert (vector == labels.NOT_MENTIONED).sum() == 11
    assert labels.label_states(vector) == states
    assert labels.column(np.stack([vector, vector]), "edema").tolist() == [1, 1]


def test_vector_refuses_other_states():
    with pytest.raises(ValueError, match="'Edema' has state 2"):
        labels.label_vector({"Edema": 2})
    with pytest.raises(ValueError, match="14 entries, not 3"):
        labels.label_states([1, 0, 1])


@pytest.mark.parametrize(
    ("value", "state"),
    [
        *[("1.0", 1), ("0", 0), (" -1", -1), ("-1.0", -1), (1, 1), (0.0, 0), (True, 1), ("false", 0)],
        *[("", -2), ("  ", -2), ("NaN", -2), (None, -2), (math.nan, -2)],
    ],
)
def test_cells(value, state):
    assert labels.parse_state(value) == state


@pytest.mark.parametrize("value", ["maybe", "2", 3, [1], "1;0", math.inf])
def test_bad_cells_are_named(value):
    with pytest.raises(ValueError, match="not one of 1, 0, -1 or blank"):
        labels.parse_state(value)
