"""Labels from report text. All texts are invented."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvlp_jax.data import label_rules_tables as tables
from medvlp_jax.data.label_rules import (
    OTHER,
    labels_of,
    labels_of_report,
    labels_of_sections,
    mentions_of,
    sentences_of,
)
from medvlp_jax.data.labels import ABSENT, CHEXPERT_LABELS, NOT_MENTIONED, PRESENT, UNCERTAIN, label_states

P, A, U = PRESENT, ABSENT, UNCERTAIN

CASES = [
    ("Small left pleural effusion.", {"Pleural Effusion": P}),
    ("No pneumothorax.", {"Pneumothorax": A}),
    (
        "No dense consolidation, large pleural effusion, or apical pneumothorax is apparent.",
        {"Consolidation": A, "Pleural Effusion": A, "Pneumothorax": A},
    ),
    ("Pneumonia cannot be excluded.", {"Pneumonia": U}),
    ("Cannot exclude a small effusion.", {"Pleural Effusion": U}),
    ("No focal opacity to suggest pneumonia.", {"Lung Opacity": A, "Pneumonia": A}),
    ("No pneumothorax, but small right effusion.", {"Pneumothorax": A, "Pleural Effusion": P}),
    ("No edema, mild bibasilar atelectasis.", {"Edema": A, "Atelectasis": P}),
    ("There is no change in the left effusion.", {"Pleural Effusion": P}),
    ("Effusion is not significantly changed.", {"Pleural Effusion": P}),
    ("The previously seen pneumothorax has resolved.", {"Pneumothorax": A}),
    ("A nodule is no longer seen.", {"Lung Lesion": A}),
    ("Right basilar opacity, atelectasis versus pneumonia.", {"Lung Opacity": P, "Atelectasis": U, "Pneumonia": U}),
    ("Pneumonia is unlikely.", {"Pneumonia": A}),
    ("Consolidation consistent with pneumonia.", {"Consolidation": P, "Pneumonia": P}),
    ("Consolidation concerning for pneumonia.", {"Consolidation": P, "Pneumonia": U}),
    ("Blunting of the left costophrenic angle.", {"Pleural Effusion": U}),
    ("Small pericardial effusion.", {}),
    ("Soft tissue edema.", {}),
    ("Calcified nodule in the left lung.", {}),
    ("The heart is enlarged.", {"Cardiomegaly": P}),
    ("The heart is not enlarged.", {"Cardiomegaly": A}),
    ("Heart size is top normal.", {"Cardiomegaly": U}),
    ("Heart size is at the upper limits of normal.", {"Cardiomegaly": U}),
    (
        "Heart size and mediastinal contours are within normal limits.",
        {"Cardiomegaly": A, "Enlarged Cardiomediastinum": A},
    ),
    ("Heart size mildly enlarged, stable mediastinal contours.", {"Cardiomegaly": P}),
    ("Widened mediastinum.", {"Enlarged Cardiomediastinum": P}),
    ("Heart failure.", {"Edema": P}),
    ("The lungs are clear.", {"Lung Opacity": A}),
    ("Lungs are clear without effusion.", {"Lung Opacity": A, "Pleural Effusion": A}),
    ("Biapical pleural thickening.", {"Pleural Other": P}),
    ("Old healed rib fractures.", {"Fracture": P}),
    ("Endotracheal tube above the carina.", {"Support Devices": P}),
    ("Interval removal of the chest tube.", {"Support Devices": A}),
    ("Right PICC line ends in the superior vena cava.", {"Support Devices": P}),
    ("The trachea is midline.", {}),
    ("Small effusion.No pneumothorax.", {"Pleural Effusion": P, "Pneumothorax": A}),
    ("EFFUSION IS SEEN", {"Pleural Effusion": P}),
    ("No pneumothorax after placement of a chest tube.", {"Pneumothorax": A, "Support Devices": P}),
    (
        "As compared to the previous radiograph, there is no relevant change in the bilateral pleural effusions.",
        {"Pleural Effusion": P},
    ),
    ("The monitoring and support devices are constant.", {"Support Devices": P}),
    ("The patient has received a right internal jugular vein catheter.", {"Support Devices": P}),
    ("Interval removal of the endotracheal tube.", {"Support Devices": A}),
    ("No pneumothorax after removal of the chest tube.", {"Pneumothorax": A, "Support Devices": A}),
    ("Moderate cardiomegaly persists.", {"Cardiomegaly": P}),
    ("The cardiac silhouette remains enlarged.", {"Cardiomegaly": P}),
    ("Cardiomediastinal silhouette is stable.", {}),
    ("Cardiac, mediastinal and hilar contours are normal.", {"Cardiomegaly": A, "Enlarged Cardiomediastinum": A}),
    ("The cardiomediastinal and hilar contours are within normal limits.", {"Enlarged Cardiomediastinum": A}),
    ("Heart size is normal. The arch is a little unfolded.", {"Cardiomegaly": A}),
    ("Heart size is mildly enlarged but unchanged.", {"Cardiomegaly": P}),
    ("Mild to moderate enlargement of the cardiac silhouette is unchanged.", {"Cardiomegaly": P}),
    (
        "No focal consolidation is seen; however, a subtle right basilar opacity could represent early pneumonia.",
        {"Consolidation": A, "Lung Opacity": P, "Pneumonia": U},
    ),
    (
        "Opacity at the left base may reflect atelectasis, although infection cannot be excluded.",
        {"Lung Opacity": P, "Atelectasis": U, "Pneumonia": U},
    ),
    ("Left basilar opacity likely represents atelectasis.", {"Lung Opacity": P, "Atelectasis": U}),
    ("There is mild pulmonary vascular congestion without frank pulmonary edema.", {"Edema": P}),
    ("No overt pulmonary edema.", {"Edema": A}),
    ("Interval resolution of pulmonary edema.", {"Edema": A}),
    ("Pulmonary edema has improved.", {"Edema": P}),
    ("Pulmonary edema has nearly resolved.", {"Edema": A}),
    ("There has been interval clearing of the right lower lobe consolidation.", {"Consolidation": A}),
    ("No acute fracture is identified.", {"Fracture": A}),
    ("Old left-sided rib fractures are noted.", {"Fracture": P}),
    ("There is no evidence of pneumothorax or large pleural effusion.", {"Pneumothorax": A, "Pleural Effusion": A}),
    ("The right pleural effusion has decreased in size, now small.", {"Pleural Effusion": P}),
    ("No larger pleural effusions.", {"Pleural Effusion": A}),
    ("Small bilateral effusions are likely.", {"Pleural Effusion": U}),
    ("A small left pleural effusion is difficult to exclude.", {"Pleural Effusion": U}),
    ("Trace effusions are not excluded.", {"Pleural Effusion": U}),
    ("Neither pneumothorax nor effusion is present.", {"Pneumothorax": A, "Pleural Effusion": A}),
    ("Apical pleural thickening without effusion.", {"Pleural Other": P, "Pleural Effusion": A}),
    ("Pleural plaques are again seen.", {"Pleural Other": P}),
    ("A 2.5 cm nodule in the right upper lobe is concerning for malignancy.", {"Lung Lesion": P}),
    ("No suspicious pulmonary nodules.", {"Lung Lesion": A}),
    ("Lung volumes are low with bibasilar atelectasis.", {"Atelectasis": P}),
    ("Bibasilar opacities are most consistent with atelectasis.", {"Lung Opacity": P, "Atelectasis": P}),
    ("No evidence of acute infection.", {"Pneumonia": A}),
    ("Findings suggest pneumonia.", {"Pneumonia": U}),
    ("This would be compatible with pneumonia in the right clinical context.", {"Pneumonia": U}),
    ("Aspiration pneumonia is a possibility.", {"Pneumonia": U}),
    ("ET tube tip is 4 cm above the carina.", {"Support Devices": P}),
    ("NG tube courses below the diaphragm.", {"Support Devices": P}),
    ("Dual-chamber pacemaker leads end in the right atrium and ventricle.", {"Support Devices": P}),
    ("Median sternotomy wires are intact.", {"Support Devices": P}),
    ("No pneumothorax is present status post line placement.", {"Pneumothorax": A, "Support Devices": P}),
    ("Right-sided Port-A-Cath terminates in the low SVC.", {"Support Devices": P}),
    ("There is no mediastinal widening.", {"Enlarged Cardiomediastinum": A}),
    ("The mediastinum is widened.", {"Enlarged Cardiomediastinum": P}),
    ("Lungs are well expanded and clear.", {"Lung Opacity": A}),
    ("The lungs are clear of consolidation.", {"Consolidation": A}),
    ("Clearing of the opacities.", {"Lung Opacity": A}),
    ("Patchy opacities in both lungs, right greater than left, unchanged.", {"Lung Opacity": P}),
    ("No pneumothorax, pneumomediastinum, or free air.", {"Pneumothorax": A}),
    ("There is no pleural effusion, and there is a small pneumothorax.", {"Pleural Effusion": A, "Pneumothorax": P}),
    ("Without comparison films, chronicity of the left effusion is unknown.", {"Pleural Effusion": P}),
    ("Not only effusion but also pneumothorax.", {"Pleural Effusion": P, "Pneumothorax": P}),
    ("If there is clinical concern for pneumonia, obtain CT.", {"Pneumonia": U}),
    ("The heart is top-normal in size.", {"Cardiomegaly": U}),
    ("There is no evidence of congestive heart failure.", {"Edema": A}),
    ("Lung opacity, possibly pneumonia or hemorrhage.", {"Lung Opacity": P, "Pneumonia": U}),
    ("Rule out pneumonia.", {"Pneumonia": U}),
    ("Unremarkable cardiac silhouette.", {"Cardiomegaly": A}),
    ("Heart and lungs are normal.", {"Cardiomegaly": A}),
    ("Right lung is clear but there is left lower lobe collapse.", {"Lung Opacity": A, "Atelectasis": P}),
    ("No displaced rib fracture. Compression fracture of T8.", {"Fracture": P}),
    ("Lines and tubes are in standard position.", {"Support Devices": P}),
    ("The NG tube has been removed.", {"Support Devices": A}),
    ("Left PICC has been removed; right IJ line remains.", {"Support Devices": P}),
    ("Mass-like consolidation in the right upper lobe.", {"Consolidation": P, "Lung Lesion": P}),
    ("No masses.", {"Lung Lesion": A}),
    ("Absence of pneumothorax is confirmed.", {"Pneumothorax": A}),
]


@pytest.mark.parametrize(("text", "expected"), CASES, ids=[text for text, _ in CASES])
def test_states(text, expected):
    found = label_states(labels_of(text))
    found.pop("No Finding", None)
    assert found == expected


@pytest.mark.parametrize("text", [text for text, states in CASES if len(states) == 1])
def test_other_sentences_do_not_change_a_state(text):
    alone = label_states(labels_of(text))
    for around in (f"Frontal view of the chest. {text}", f"{text} The imaged upper abdomen looks as expected."):
        assert label_states(labels_of(around)) == alone


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("No acute cardiopulmonary abnormality.", PRESENT),
        ("Normal chest.", PRESENT),
        ("1. Normal.", PRESENT),
        ("Not normal.", NOT_MENTIONED),
        ("No effusion. Right chest port in place.", PRESENT),
        ("Possible effusion.", NOT_MENTIONED),
        ("Unchanged since the prior study.", NOT_MENTIONED),
        ("", NOT_MENTIONED),
        ("No effusion. Thoracic scoliosis.", NOT_MENTIONED),
        ("No effusion. No lymphadenopathy.", PRESENT),
    ],
)
def test_no_finding(text, state):
    assert labels_of(text)[CHEXPERT_LABELS.index("No Finding")] == state


def test_other_findings_may_be_left_out_of_no_finding():
    text = "No effusion. Thoracic scoliosis."
    assert labels_of(text, other_findings=False)[CHEXPERT_LABELS.index("No Finding")] == PRESENT


def test_present_before_uncertain_before_absent():
    assert label_states(labels_of("No effusion. Possible effusion."))["Pleural Effusion"] == UNCERTAIN
    assert label_states(labels_of("Possible effusion. Small effusion. No effusion."))["Pleural Effusion"] == PRESENT


def test_sections_do_not_run_into_each_other():
    labels = label_states(labels_of_sections("There is no", "effusion"))
    assert labels["Pleural Effusion"] == PRESENT
    assert np.array_equal(labels_of_sections("", "Edema."), labels_of("Edema."))


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        (
            "INDICATION: rule out pneumonia\nFINDINGS: Small effusion.\nIMPRESSION: No edema.",
            {"Pleural Effusion": P, "Edema": A},
        ),
        ("Small effusion.", {"Pleural Effusion": P}),
        ("HISTORY: pneumonia\n\nSmall effusion.", {"Pleural Effusion": P}),
        ("HISTORY: pneumonia", {}),
        ("", {}),
    ],
)
def test_whole_reports_are_cut_first(report, expected):
    assert label_states(labels_of_report(report)) == expected


def test_mentions_point_at_their_words():
    text = "No effusion. Small pneumothorax, but no scoliosis."
    sentences = sentences_of(text)
    found = [(m.name, sentences[m.sentence][m.start : m.end], m.state) for m in mentions_of(text)]
    assert found == [
        ("Pleural Effusion", "effusion", ABSENT),
        ("Pneumothorax", "pneumothorax", PRESENT),
        (OTHER, "scoliosis", ABSENT),
    ]


def test_tables_name_known_observations():
    assert set(tables.MENTIONS) == set(CHEXPERT_LABELS) - {"No Finding"}
    assert set(tables.LOOKALIKES) | set(tables.ANATOMY) <= set(tables.MENTIONS)


WORDS = st.sampled_from(
    [
        "no",
        "possible",
        "effusion",
        "the heart",
        "is",
        "enlarged",
        "normal",
        ",",
        ".",
        "but",
        "or",
        "pneumonia",
        "not seen",
    ]
)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.one_of(st.text(), st.lists(WORDS, max_size=30).map(" ".join)))
def test_any_text_has_labels(text):
    labels = labels_of(text)
    assert labels.dtype == np.int8
    assert labels.shape == (14,)
    assert set(labels.tolist()) <= {PRESENT, ABSENT, UNCERTAIN, NOT_MENTIONED}
    sentences = sentences_of(text)
    for mention in mentions_of(text):
        assert 0 <= mention.start < mention.end <= len(sentences[mention.sentence])


def test_a_hostile_sentence_ends_soon():
    """No pattern may take time that grows faster than about the square of the length of a sentence."""
    labels = labels_of("blunting of the " * 300 + "small , or " * 300 + "not " * 300)
    assert labels.shape == (14,)
