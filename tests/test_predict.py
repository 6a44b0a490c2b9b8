"""Prediction from an untrained run: what it returns, draws and prints, and how it refuses what it cannot read."""

import json
import math
import shutil
import subprocess
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict
from PIL import Image
from sklearn.datasets import load_sample_image

from medvlp_jax import heat_picture, predict
from medvlp_jax.data import images, tokenizer
from medvlp_jax.data.labels import CHEXPERT_LABELS
from medvlp_jax.predict import Predictor
from tfds_builders.image_report_folder.make_dummy_data import dicom

TEXTS = ["Small left effusion.", "No effusion."]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.make_tower(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    return tiny.make_run(data, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def predictor(run):
    return Predictor(run, TEXTS)


@pytest.fixture
def film(tmp_path):
    path = tmp_path / "film.png"
    path.write_bytes(images.encode_png(tiny.chest()))
    return path


def call(capsys, *arguments):
    """Exit status, standard output and error lines of the command."""
    status = predict.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return status, captured.out, captured.err.splitlines()


def test_a_prediction(predictor, film):
    got = predictor(film)
    assert (got.image, got.section) == (str(film), "impression")
    assert got.doubts == []
    assert {f.finding for f in got.findings} == set(CHEXPERT_LABELS)
    assert [f.score for f in got.findings] == sorted((f.score for f in got.findings), reverse=True)
    for finding in got.findings:
        assert finding.score == pytest.approx(1 / (1 + math.exp(finding.negative - finding.positive)), abs=1e-9)
    assert {t.text for t in got.texts} == set(TEXTS)
    assert got.texts[0].cosine >= got.texts[1].cosine
    assert predictor(film).findings == got.findings
    # IMITATE has regions for the impression alone, so that space is used: its vector is compared, not the read one.
    embedding = predictor.run.embed_images(predictor.run.view(tiny.chest())[None])
    image_D = np.asarray(embedding.aligned["impression"])[0, 0]
    text_D = np.asarray(predictor.run.embed_texts([TEXTS[0]]).aligned["impression"])[0]
    cosine = image_D @ text_D / np.linalg.norm(image_D) / np.linalg.norm(text_D)
    assert dict(got.texts)[TEXTS[0]] == pytest.approx(cosine, abs=1e-5)
    height, width = np.asarray(embedding.regions["impression"]).shape[2:4]
    assert all(heat.shape == (height, width) for heat in (*got.text_maps.values(), *got.finding_maps.values()))


def test_dicom_png_and_jpeg_agree(predictor, tmp_path):
    grey = tiny.chest()
    files = {
        "a.png": images.encode_png(grey),
        "b.dcm": dicom(grey.astype(np.uint16) * 16),
        "c.dcm": dicom(grey.astype(np.uint16) * 16, inverted=True),
        "d.jpg": images.encode_jpeg(grey, quality=98),
    }
    predictions = []
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        predictions.append(predictor(tmp_path / name))
    for prediction in predictions:
        assert prediction.doubts == []
        assert dict(prediction.texts)[TEXTS[0]] == pytest.approx(dict(predictions[0].texts)[TEXTS[0]], abs=0.03)


def test_command_line_tables_and_maps(run, film, tmp_path, capsys):
    other = tmp_path / "other" / "film.png"  # the same name in another folder
    other.parent.mkdir()
    shutil.copy(film, other)
    out = tmp_path / "maps"
    texts = [argument for text in TEXTS for argument in ("--text", text)]
    status, printed, errors = call(
        capsys, "--run", run, film, other, *texts, "--findings", "edema, Effusion", "--out", out, "--top", 1
    )
    assert (status, errors) == (0, [])
    assert "step 4" in printed
    for word in ("Edema", "Pleural Effusion", "cos+", "cos-", "images nearest to 'No effusion.'", predict.NOTE):
        assert word in printed
    assert "Cardiomegaly" not in printed
    maps = sorted(path.name for path in out.iterdir())
    assert len(maps) == 6
    assert all(name in printed for name in maps)
    assert {name.partition("-text")[0] for name in maps if "-text" in name} == {"film", "film-2"}
    with Image.open(out / "film-text1-small-left-effusion.png") as picture:
        assert picture.mode == "RGB"
        assert picture.height > 512
        assert picture.width > 512 * 180 / 200
        colours = np.asarray(picture)
    assert (np.ptp(colours, axis=2) > 10).any()


def test_json_holds_everything_and_bad_files_do_not_stop_the_others(run, film, tmp_path, capsys):
    photograph = tmp_path / "photo.jpg"
    Image.fromarray(load_sample_image("china.jpg")).save(photograph)
    contents = {
        "cut.jpg": images.encode_jpeg(tiny.chest())[:-900],
        "notes.txt": b"FINDINGS: none of these words may be printed. " * 10,
        "empty.png": b"",
        "blank.png": images.encode_png(np.full((90, 90), 7, np.uint8)),
        "cut.dcm": dicom(tiny.chest())[:-5000],
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    bad = [str(tmp_path / name) for name in (*contents, "absent.png")]
    options = ("--text", TEXTS[0], "--out", tmp_path / "maps", "--json", "--top", 0)
    status, printed, errors = call(capsys, "--run", run, *bad, film, photograph, *options)
    assert status == 1
    document = json.loads(printed)
    assert document["step"] == 4
    assert document["note"] == f"{predict.NOTE} {predict.PHANTOM_NOTE}"
    assert list(document["failures"]) == bad
    good, doubtful = document["images"]
    assert good["warnings"] == []
    assert "colour" in [warning["check"] for warning in doubtful["warnings"]]
    assert len(good["findings"]) == 14
    assert set(good["findings"][0]) == {"finding", "score", "positive", "negative"}
    assert len(good["maps"]) == 1
    assert {entry["image"] for entry in document["texts"][0]["images"]} == {str(film), str(photograph)}
    for path, line in zip(bad, errors, strict=False):
        assert line.startswith(f"failed: {path}: ")
        assert line.endswith(".")
    assert any(line.startswith(f"warning: {photograph}: colour: ") for line in errors)
    assert errors[-1] == "6 of 8 images could not be read or drawn."
    assert "words" not in "".join(errors) + printed
    assert "DUMMY" not in "".join(errors) + printed  # the patient id of the DICOM file


def test_the_map_lies_over_what_the_model_saw(run, data, tmp_path):
    """A view that crops and pads: outside of it is no colour, and a hot region is drawn where it was cut out."""
    cropping = shutil.copytree(run, tmp_path / "cropping")
    config = json.loads((cropping / "config.json").read_text())
    config["image.evaluate"] = "decode|center({size}, crop_from=80)"
    (cropping / "config.json").write_text(json.dumps(config))
    path = tmp_path / "wide.png"
    path.write_bytes(images.encode_png(cv2.resize(tiny.chest(), (600, 400))))
    got = Predictor(cropping, TEXTS[:1], findings=["Edema"])(path)
    heat_hxw = np.zeros_like(got.text_maps[TEXTS[0]])
    heat_hxw[1, 1] = 1.0
    rows, columns = heat_hxw.shape
    heat_HxW = heat_picture.onto_image(heat_hxw, got.view_size, got.view_to_image, got.image_shape, got.picture.shape)
    assert heat_HxW.shape == got.picture.shape == (400, 600)
    # 600 x 400 becomes 80 x 53.3 with bars above and below; the view is the central 64 x 64 of that.
    seen_HxW = ~np.isnan(heat_HxW)
    assert seen_HxW.any(axis=1).all()
    assert np.flatnonzero(seen_HxW.any(axis=0))[[0, -1]] == pytest.approx([60, 539], abs=1)
    y, x = np.unravel_index(np.nanargmax(heat_HxW), heat_HxW.shape)
    assert x == pytest.approx(60 + 480 * 1.5 / columns, abs=8)
    assert y == pytest.approx(-40 + 480 * 1.5 / rows, abs=8)
    picture = heat_picture.draw(got.picture, heat_HxW, 0.0, 1.0, ["caption"])
    grey_HxWx3 = np.repeat(got.picture[..., None], 3, axis=2)
    np.testing.assert_array_equal(picture[:400, :60], grey_HxWx3[:, :60])
    np.testing.assert_array_equal(picture[:400, 541:600], grey_HxWx3[:, 541:])
    assert np.ptp(picture[y, x]) > 20


def test_pictures_of_large_and_small_images_keep_their_shape():
    assert heat_picture.display(np.zeros((3000, 2000), np.uint8)).shape == (1024, 683)
    assert heat_picture.display(np.zeros((64, 64), np.uint8)).shape == (512, 512)
    assert heat_picture.display(np.zeros((700, 600), np.uint8)).shape == (700, 600)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--findings", "Oedema"], ["'Oedema'", "Known labels: No Finding"]),
        (["--prompts", "fancy"], ["fancy", "plain", "ensemble"]),
        (["--prompts", "{file}", "--findings", "Fracture"], ["prompts.json", "'Fracture'", "It has: Edema"]),
        (["--text", "  "], ["empty"]),
        (["--text", "effusion " * 80], ["82 tokens", "64", "text.max_length", "Shorten"]),
        (["--step", "7"], ["7", "4"]),
        (["--out", "{file}"], ["prompts.json", "--out"]),
        (["--run", "{folder}/nowhere"], ["nowhere", "config.json"]),
    ],
    ids=["finding", "prompts", "no prompts", "empty text", "long text", "step", "out", "run"],
)
def test_wrong_options_end_in_one_line(run, film, tmp_path, capsys, arguments, words):
    file = tmp_path / "prompts.json"
    file.write_text(json.dumps({"Edema": {"positive": ["Edema."], "negative": ["No edema."]}}))
    filled = [argument.format(file=file, folder=tmp_path) for argument in arguments]
    status, printed, errors = call(capsys, "--run", run, film, "--out", tmp_path / "o", *filled)
    assert (status, printed) == (1, "")
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    for word in words:
        assert word in errors[0]
    assert not (tmp_path / "o").exists()


def test_too_long_prompts_are_refused_too(run, tmp_path):
    file = tmp_path / "prompts.json"
    file.write_text(json.dumps({"Edema": {"positive": ["edema " * 70], "negative": ["No edema."]}}))
    with pytest.raises(ValueError, match=r"A prompt of Edema .* has 72 tokens"):
        Predictor(run, prompts=file)


def test_missing_checkpoint_and_text_tower(run, film, tmp_path, capsys):
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(run / "config.json", bare)
    status, _, errors = call(capsys, "--run", bare, film)
    assert status == 1
    assert "checkpoint" in errors[0]
    config = json.loads((run / "config.json").read_text())
    moved = shutil.copytree(run, tmp_path / "moved")
    (moved / "config.json").write_text(json.dumps({**config, "text.weights": "phantom", "data.dir": "gone"}))
    status, _, errors = call(capsys, "--run", moved, film)
    assert status == 1
    assert "pretrain_text" in errors[0]


def test_as_a_module_without_a_traceback(tmp_path):
    command = [sys.executable, "-m", "medvlp_jax.predict", "--run", str(tmp_path), "x.png"]
    done = subprocess.run(
        command, cwd=tiny.REPOSITORY, env=tiny.environment(), capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1


def test_a_text_of_more_sentences_than_a_run_takes_is_refused():
    asked = object.__new__(Predictor)
    tower = SimpleNamespace(max_length=64, tokenizer=tokenizer.load("phantom"))
    asked.run = SimpleNamespace(tower=tower, config=ConfigDict({"text": {"max_sentences": 2}}))
    asked._refuse_long([("the text", "Heart is large. No effusion.")])
    with pytest.raises(
        ValueError, match=r"The text 'Heart is.*' has 3 sentences; this run takes 2 \(text.max_sentences"
    ):
        asked._refuse_long([("the text", "Heart is large. No effusion. Clear.")])
