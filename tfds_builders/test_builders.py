"""What all builders share: registration, settings, messages, documentation, and what never gets into a record."""

import dataclasses
import importlib
import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensorflow_datasets")

from medvlp_jax import prepare
from medvlp_jax.data import build_settings, images, side_tables
from tfds_builders import common
from tfds_builders.chestxray14 import chestxray14
from tfds_builders.chestxray14 import make_dummy_data as nih_data
from tfds_builders.image_report_folder.make_dummy_data import dicom, ellipses
from tfds_builders.mimic_cxr import make_dummy_data as mimic_data
from tfds_builders.mimic_cxr import mimic_cxr
from tfds_builders.testing import make, write_csv

HERE = Path(__file__).parent
LOCAL = [name for name in prepare.BUILDERS if name != "cxr_phantom"]


def test_every_folder_is_registered():
    folders = {path.parent.name for path in HERE.glob("*/__init__.py")}
    assert folders == set(prepare.BUILDERS)


def test_names_that_tfds_uses_itself():
    """TFDS has a chexpert of its own; importing its catalogue before or after ours is no error."""
    import tensorflow_datasets as tfds

    registry = tfds.core.registered._DATASET_REGISTRY
    assert [name for name in LOCAL if registry.get(name) is build_settings.load(name)[0]] == []


@pytest.mark.parametrize("name", LOCAL)
def test_shape_of_a_builder(name):
    builder_class, module = build_settings.load(name)
    assert issubclass(builder_class, common.LocalBuilder)
    assert isinstance(module.CONFIG, common.LocalConfig)
    assert builder_class.ABOUT
    assert (builder_class.plan, builder_class.make_examples) == (module.plan, module.make_examples)
    with pytest.raises(ValueError, match=r"--root: a|--root: the|--manifest"):
        module.plan(module.CONFIG)
    for setting, value in (("fit", "crop"), ("limit", -1), ("fractions", "1,1,1"), ("split_conflict", "x")):
        with pytest.raises(ValueError, match=setting):
            module.plan(dataclasses.replace(module.CONFIG, root=str(HERE), **{setting: value}))
    assert callable(module.describe)


@pytest.mark.parametrize("name", LOCAL)
def test_page_of_a_builder(name):
    """Every command of the page names settings that exist; access, layout and reasons are there."""
    text = (HERE / name / "README.md").read_text(encoding="utf-8")
    module = importlib.import_module(prepare.BUILDERS[name])
    known = {field.name for field in dataclasses.fields(module.CONFIG)} | {
        "data_dir",
        "workers",
        "name",
        "estimate",
        "describe",
        "verify",
        "json",
    }
    commands = re.findall(r"python -m medvlp_jax\.prepare (\w+)((?:[^\n`#]|\\\n)*)", text)
    assert name in {command for command, _ in commands}
    for command, arguments in commands:
        if command == name:
            assert set(re.findall(r"--(\w+)", arguments)) <= known
    if name != "image_report_folder":
        for word in ("Access", "Layout", "easons", "Split"):
            assert word in text, word


def test_a_published_list_of_splits(tmp_path):
    nih_data.write(tmp_path)
    rows = [("00000001_000.png", "val"), ("00000001_001.png", "val"), ("00000008_000", "fold_3"), ("no.png", "test")]
    write_csv(tmp_path / "list.csv", ("Image Index", "split"), rows)
    made = make(chestxray14, root=str(tmp_path), size=32, split_table=str(tmp_path / "list.csv"))
    assert made.counts == {"validation": 2, "fold_3": 1}
    assert made.reasons["not_in_split_table"] == 5
    assert made.provenance["split"] == "table list.csv"
    assert "list.csv" in made.provenance["tables"]
    write_csv(tmp_path / "wrong.csv", ("name", "split"), rows)
    with pytest.raises(ValueError, match="needs a column split and one of image_id"):
        make(chestxray14, root=str(tmp_path), split_table=str(tmp_path / "wrong.csv"))
    write_csv(tmp_path / "apart.csv", ("image_id", "split"), [("00000001_000", "train"), ("00000001_001", "test")])
    with pytest.raises(ValueError, match="1 patients are in more than one split"):
        make(chestxray14, root=str(tmp_path), split_table=str(tmp_path / "apart.csv"))


def test_border_depth_and_limit(tmp_path):
    """The shared settings on a set whose files have dark borders and twelve bits."""
    mimic_data.write(tmp_path, "dcm")
    for number, path in enumerate(sorted(tmp_path.rglob("*.dcm"))):
        picture = np.zeros((120, 100), np.uint16)
        picture[12:108, 10:90] = ellipses(number).astype(np.uint16) * 16
        path.write_bytes(dicom(picture, ViewPosition="PA"))
    settings = dict(root=str(tmp_path), splits="train", limit=1)
    ((whole,), (cropped,)) = (
        make(mimic_cxr, **settings, crop_border=crop, size=0, depth=16).splits["train"].values()
        for crop in (False, True)
    )
    assert images.read_image(whole["image"]).shape == (120, 100)
    assert images.read_image(cropped["image"]).shape == (96, 80)
    assert images.read_image(cropped["image"]).dtype == np.uint16
    shorter = make(mimic_cxr, **settings, size=48, fit="shorter")
    (record,) = shorter.splits["train"].values()
    assert images.read_image(record["image"]).shape == (58, 48)
    assert shorter.provenance["beyond_limit"] > 0


def test_identical_files_are_counted():
    sources = [("train", "a"), ("train", "a"), ("test", "a"), ("train", "b"), ("test", "c"), ("train", "")]
    found = side_tables.identical_files({"split": split, "sha256": sha} for split, sha in sources)
    assert found == (2, 1)
