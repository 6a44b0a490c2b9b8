"""The phantoms: reproducible pictures, truthful text, boxes and masks where the text says."""

import re

import cv2
import numpy as np
import pytest

from medvlp_jax.data import records, sections
from medvlp_jax.data.labels import CHEXPERT_LABELS, label_states
from tfds_builders.cxr_phantom import cxr_phantom, preview
from tfds_builders.cxr_phantom.anatomy import Pose, stream
from tfds_builders.cxr_phantom.baseline import linear_baseline
from tfds_builders.cxr_phantom.canvas import Canvas
from tfds_builders.cxr_phantom.cxr_phantom import CxrPhantom, PhantomConfig, make_examples, plan
from tfds_builders.cxr_phantom.findings import KINDS, RENDERED_LABELS, anatomy_of
from tfds_builders.cxr_phantom.picture import box_of, render
from tfds_builders.cxr_phantom.report import labels_of, write_report
from tfds_builders.cxr_phantom.study import patient_body, sample_findings, sample_study, study_count

MENTIONS = {
    "Pleural Effusion": r"effusion|pleural fluid",
    "Pneumothorax": r"pneumothorax",
    "Consolidation": r"consolidati",
    "Atelectasis": r"atelectasis",
    "Cardiomegaly": r"cardiomegaly|heart|cardiac silhouette",
    "Edema": r"edema",
    "Lung Lesion": r"nodule|mass\b",
    "Fracture": r"fracture|rib reflects",
    "Support Devices": r"pacemaker|pacing device|catheter|central line|tube|wires|indwelling|support device",
    "Pleural Other": r"pleural thickening",
    "Enlarged Cardiomediastinum": r"mediastin(um|al)",
    "Pneumonia": r"pneumonia",
    "Lung Opacity": r"opacity|lungs are (well|clear)",
}
DENIED = re.compile(
    r"\b(no|negative for|normal|unremarkable|resolved|resolution|removal|clear|within normal limits)\b", re.IGNORECASE
)
DOUBTED = re.compile(r"\b(possible|questionable|cannot|may represent|concerning for)\b", re.IGNORECASE)


@pytest.fixture(scope="module")
def reports():
    """2000 studies of 1180 or so patients with their reports."""
    studies = []
    for patient in range(1300):
        for number in range(study_count(0, patient)):
            study = sample_study(0, patient, number)
            rng = stream(0, patient, 1, number, 2)
            studies.append((study, write_report(rng, study, patient_body(0, patient))))
    assert len(studies) >= 1900
    return studies[:2000]


def read_states(sentence: str) -> dict[str, int]:
    """What a reader with a word list takes from one sentence."""
    states = {}
    for clause in re.split(r", (?=concerning|consistent|compatible)", sentence):
        for name, pattern in MENTIONS.items():
            if name == "Cardiomegaly" and "right heart" in clause:
                continue
            if re.search(pattern, clause, re.IGNORECASE):
                states[name] = 0 if DENIED.search(clause) else -1 if DOUBTED.search(clause) else 1
    return states


def test_the_words_say_what_the_labels_say(reports):
    wrong = []
    for _, report in reports:
        for sentence in report.findings + report.impression:
            stated = {name: state for name, state in sentence.states.items() if name != "No Finding"}
            if read_states(sentence.text) != stated:
                wrong.append((sentence.text, stated, read_states(sentence.text)))
    assert not wrong, wrong[:3]


def test_every_observation_occurs_in_every_state(reports):
    labels = np.stack([report.labels for _, report in reports])
    for column, name in enumerate(CHEXPERT_LABELS):
        counts = {state: int((labels[:, column] == state).sum()) for state in (1, 0, -1, -2)}
        assert counts[1] >= 15, (name, counts)
        assert counts[-2] >= 15, (name, counts)
        if name in RENDERED_LABELS:
            assert counts[0] >= 15, (name, counts)
        if name in RENDERED_LABELS and name != "Support Devices":
            assert counts[-1] >= 2, (name, counts)


def test_labels_never_deny_what_is_there_nor_assert_what_is_not(reports):
    for study, report in reports:
        states = label_states(report.labels)
        there = {KINDS[kind].label for kind in study.kinds}
        for name in RENDERED_LABELS:
            if name in there:
                assert states.get(name) != 0, (name, study)
            else:
                assert states.get(name) != 1, (name, study)
        if there - {"Support Devices"} and any(s.kinds for s in report.findings + report.impression):
            silent = {k for k in study.kinds if states.get(KINDS[k].label) is None}
            assert not silent


def test_label_precedence_and_no_finding(reports):
    from tfds_builders.cxr_phantom.report import Sentence

    def labels(*states):
        return label_states(labels_of(tuple(Sentence("", s) for s in states)))

    assert labels({"Edema": 0}, {"Edema": -1}) == {"Edema": -1}
    assert labels({"Edema": -1}, {"Edema": 1}, {"Edema": 0}) == {"Edema": 1}
    assert labels({"Support Devices": 1}) == {"Support Devices": 1, "No Finding": 1}
    assert labels({"Edema": 0}) == {"Edema": 0, "No Finding": 1}
    assert labels({}) == {}
    normal = [report.labels[0] == 1 for study, report in reports if not study.observed]
    assert np.mean(normal) > 0.9  # the rest are doubts about something, or "no change" and no more


def test_sections_and_rates(reports):
    studies = [study for study, _ in reports]
    texts = [report for _, report in reports]
    assert 0.08 < np.mean([not r.findings for r in texts]) < 0.12
    assert 0.035 < np.mean([not r.impression for r in texts]) < 0.065
    assert all(r.findings or r.impression for r in texts)
    assert 0.30 < np.mean([not s.observed for s in studies]) < 0.42
    concluding = [r for r in texts if r.impression]
    denying = [any(0 in s.states.values() for s in r.impression) for r in concluding]
    assert 0.62 < np.mean(denying) < 0.78
    unchanged = [s.text for r in concluding for s in r.impression if not s.states and not s.kinds]
    assert len(unchanged) > 20
    assert all("change" in text.lower() for text in unchanged)
    lengths = [(len(r.findings_text), len(r.impression_text)) for r in texts if r.findings and r.impression]
    assert np.mean([f > i for f, i in lengths]) > 0.8
    assert len({r.findings_text for r in texts if r.findings}) > 0.95 * sum(bool(r.findings) for r in texts)


def test_the_section_parser_finds_the_sections(reports):
    for _, report in reports[:300]:
        assert all(line.startswith(" ") and len(line) <= 80 for line in report.text.rstrip("\n").split("\n"))
        parsed = {s.name: " ".join(s.text.split()) for s in sections.parse_sections(report.text, mode="mimic")}
        assert parsed.get("findings", "") == report.findings_text
        assert parsed.get("impression", "") == report.impression_text


def test_follow_ups_are_worded_as_such(reports):
    for study, report in reports:
        changes = {o.change for o in study.observed}
        assert changes <= ({""} if study.number == 0 else {"new", "unchanged", "worse", "better"})
        compared = re.search(r"since the prior|in the interval|Interval|Unchanged|Stable", report.findings_text)
        assert study.number > 0 or not compared
        assert ("COMPARISON: None." in report.text) == (study.number == 0)


def test_laterality_of_words_and_boxes():
    """Right in the text is the left half of the image, up to the rotation and shift of the patient."""
    checked = 0
    for patient in range(250):
        study = sample_study(3, patient, 0)
        report = write_report(stream(3, patient, 1, 0, 2), study, patient_body(3, patient))
        chosen = [f for f in study.findings if f.side and f.kind not in ("device", "mediastinum")]
        if not chosen or not report.findings:
            continue
        picture = render(patient_body(3, patient), study.pose(3, 0), study.findings, 64)
        for finding, mask in zip(study.findings, picture.masks, strict=True):
            if finding not in chosen or finding.kind not in report.sentence_of:
                continue
            sentence = report.findings[report.sentence_of[finding.kind]].text.lower()
            both = sum(f.kind == finding.kind for f in study.findings) > 1
            assert finding.side in sentence or (both and re.search(r"bilateral|bibasilar|both", sentence)), sentence
            _top, left, _bottom, right = box_of(mask)
            assert ((left + right) / 2 < 0.5) == (finding.side == "right"), (finding, left, right)
            checked += 1
    assert checked > 80


@pytest.mark.parametrize("kind", KINDS)
def test_masks_lie_in_the_body_and_change_the_picture(kind):
    for trial in range(4):
        rng = stream(5, trial, list(KINDS).index(kind))
        pose = Pose.sample(rng, ("PA", "AP")[trial % 2])
        body = patient_body(5, trial)
        found = tuple(sample_findings(rng, kind))
        size = 256
        picture = render(body, pose, found, size)
        normal = render(body, pose, (), size)
        torso = Canvas(size, pose).mask(anatomy_of(body, pose, found).torso())
        torso = cv2.dilate(torso, np.ones((5, 5), np.uint8)) > 0
        difference = np.abs(picture.film.astype(int) - normal.film)
        for mask in picture.masks:
            assert set(np.unique(mask)) == {0, 255}
            assert torso[mask > 0].all()
            assert difference[mask > 0].mean() > 1.5 * difference[difference.shape[0] // 4 :, :4].mean()
            assert difference[mask > 0].max() >= 8
            top, left, bottom, right = (round(v * size) for v in box_of(mask))
            assert mask[top:bottom, left:right].sum() == mask.sum()
            for line in (mask[top], mask[bottom - 1], mask[:, left], mask[:, right - 1]):
                assert line.any()
        assert set(np.unique(picture.lungs)) == {0, 1, 2}
        columns = np.arange(size)[None] + 0 * picture.lungs
        assert columns[picture.lungs == 2].mean() < columns[picture.lungs == 1].mean()  # the right lung is image left


def test_sizes_show_the_same_chest():
    for patient in (1, 9, 11):
        study, body = sample_study(0, patient, 0), patient_body(0, patient)
        pictures = {size: render(body, study.pose(0, 0), study.findings, size) for size in (96, 128, 256)}
        big = pictures[256]
        for size in (96, 128):
            small = pictures[size]
            films = [cv2.resize(p.film, (48, 48), interpolation=cv2.INTER_AREA).ravel() for p in (big, small)]
            assert np.corrcoef(films[0], films[1])[0, 1] > 0.99
            for a, b in zip(big.masks, small.masks, strict=True):
                assert np.abs(np.subtract(box_of(a), box_of(b))).max() < 2.5 / size
            lungs = [cv2.resize((p.lungs == 1).astype(np.uint8), (96, 96)) for p in (big, small)]
            assert (lungs[0] != lungs[1]).mean() < 0.02


def test_an_image_depends_on_its_own_numbers_alone():
    config = PhantomConfig(name="t", size=64)
    first = make_examples([7, 0], config)
    make_examples([8, 0], config)
    cv2.setRNGSeed(5)
    np.random.default_rng(0).normal()
    again = make_examples([7, 0], PhantomConfig(name="other", size=64))
    assert [key for key, _ in first] == [key for key, _ in again]
    for (_, a), (_, b) in zip(first, again, strict=True):
        assert a["image"] == b["image"]
        assert a["report"] == b["report"]
        assert a["lung_mask"] == b["lung_mask"]
        assert [m["mask"] for m in a["masks"]] == [m["mask"] for m in b["masks"]]
    assert first[0][1]["image"] != make_examples([7, 0], PhantomConfig(name="t", size=64, seed=1))[0][1]["image"]


def test_plan_keeps_patients_apart_and_counts_studies():
    config = PhantomConfig(name="t", train_studies=400, validation_studies=50, test_studies=60)
    splits = plan(config).splits
    assert {name: len(items) for name, items in splits.items()} == {"train": 400, "validation": 50, "test": 60}
    patients = {name: {patient for patient, _ in items} for name, items in splits.items()}
    assert not patients["train"] & patients["test"]
    assert not patients["validation"] & (patients["train"] | patients["test"])
    assert 400 / len(patients["train"]) > 1.3
    longer = plan(PhantomConfig(name="t", train_studies=500)).splits["train"]
    assert longer[:400] == splits["train"]  # a larger set contains the smaller one
    assert "test" not in plan(PhantomConfig(name="t", test_studies=0)).splits
    with pytest.raises(ValueError, match="size=8 is not between 32 and 2048"):
        plan(PhantomConfig(name="t", size=8))
    with pytest.raises(ValueError, match="train_studies=-1"):
        plan(PhantomConfig(name="t", train_studies=-1))
    with pytest.raises(ValueError, match="seed=-1"):
        plan(PhantomConfig(name="t", seed=-1))


def test_build_and_read_back(tmp_path):
    config = PhantomConfig(name="tiny", size=48, train_studies=30, validation_studies=4, test_studies=12)
    CxrPhantom(data_dir=str(tmp_path), config=config).download_and_prepare(file_format="array_record")
    sources = {split: records.RecordSource(tmp_path, "cxr_phantom", split) for split in records.SPLITS}
    expected = {}
    for item in plan(config).splits["train"]:
        for _, example in make_examples(item, config):
            expected[example["image_id"]] = example
    assert len(sources["train"]) == len(expected)
    linked = 0
    for i in range(len(sources["train"])):
        record = sources["train"][i]
        want = expected.pop(int(record["image_id"]))
        for field in ("image", "lung_mask", "findings", "impression", "report", "sentences", "view", "study_id"):
            assert record[field] == want[field]
        assert np.array_equal(record["labels"], want["labels"])
        assert record["public"]
        assert record["has_findings"] == bool(record["findings"])
        image = cv2.imdecode(np.frombuffer(record["image"], np.uint8), cv2.IMREAD_UNCHANGED)
        assert image.shape == (48, 48)
        assert image.std() > 20
        boxes = record["boxes"]
        assert record["masks"]["finding"] == boxes["finding"]
        for box, finding, sentence in zip(boxes["box"], boxes["finding"], boxes["sentence"], strict=True):
            assert (box[:2] < box[2:]).all()
            assert box.min() >= 0
            assert box.max() <= 1
            if sentence >= 0:
                assert re.search(MENTIONS[finding], record["sentences"][sentence], re.IGNORECASE)
                linked += 1
    assert not expected
    assert linked > 10
    lines = "\n".join(cxr_phantom.describe(sources))
    assert "Pleural Effusion" in lines
    assert "mean AUC" in lines


def test_linear_baseline_finds_what_is_linear_and_nothing_else():
    rng = np.random.default_rng(0)
    labels = np.full((600, 14), -2, np.int8)
    labels[:, 5] = rng.integers(0, 2, 600)
    labels[:, 8] = rng.integers(0, 2, 600)
    x = rng.normal(size=(600, 48 * 48)).astype(np.float32)
    x[:, :600] += 1.5 * labels[:, 5:6]
    result = linear_baseline(x[:400], labels[:400], x[400:], labels[400:], ("Edema", "Atelectasis", "Fracture"))
    assert result.auc["Edema"] > 0.95
    assert 0.35 < result.auc["Atelectasis"] < 0.65
    assert "Fracture" not in result.auc
    assert (result.train_count, result.test_count) == (400, 200)
    assert result.test_positives["Edema"] == int(labels[400:, 5].sum())


def test_preview_writes_a_sheet(tmp_path, monkeypatch, capsys):
    out = tmp_path / "sheet.png"
    monkeypatch.setattr("sys.argv", ["preview", "--out", str(out), "--size", "64", "--columns", "2", "--rows", "1"])
    preview.main()
    assert cv2.imread(str(out)).shape == (256 + 54, 512, 3)
    assert "2 phantoms" in capsys.readouterr().out
