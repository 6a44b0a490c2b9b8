"""Tables whose paths or ids lead out of the downloaded folder: counted, and the file there is never opened."""

import gzip
import json

import pytest

pytest.importorskip("tensorflow_datasets")

from medvlp_jax.data import images
from tfds_builders import common
from tfds_builders.chest_imagenome import chest_imagenome
from tfds_builders.chestx_det10 import chestx_det10
from tfds_builders.chestxray14 import chestxray14
from tfds_builders.chestxray14 import make_dummy_data as nih_data
from tfds_builders.chexpert import chexpert
from tfds_builders.chexpert import make_dummy_data as chexpert_data
from tfds_builders.covidx import covidx
from tfds_builders.image_report_folder import image_report_folder
from tfds_builders.image_report_folder.make_dummy_data import dicom, ellipses
from tfds_builders.iu_xray import iu_xray
from tfds_builders.iu_xray import make_dummy_data as iu_data
from tfds_builders.mimic_cxr import make_dummy_data as mimic_data
from tfds_builders.mimic_cxr import mimic_cxr
from tfds_builders.ms_cxr import ms_cxr
from tfds_builders.object_cxr import object_cxr
from tfds_builders.padchest import make_dummy_data as padchest_data
from tfds_builders.padchest import padchest
from tfds_builders.rsna_pneumonia import make_dummy_data as rsna_data
from tfds_builders.rsna_pneumonia import rsna_pneumonia
from tfds_builders.siim_pneumothorax import make_dummy_data as siim_data
from tfds_builders.siim_pneumothorax import siim_pneumothorax
from tfds_builders.tbx11k import tbx11k
from tfds_builders.testing import make, write_csv, write_files
from tfds_builders.vindr_cxr import make_dummy_data as vindr_data
from tfds_builders.vindr_cxr import vindr_cxr

UP = "../../../../../outside"
"""From the folder of a study of MIMIC-CXR to the one that holds the data set."""
EDITION = "CheXpert-v1.0-small"


def rewrite(path, before, after):
    """Changes the text of a table, compressed or not; it must have been there."""
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    assert before in text
    text = text.replace(before, after)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def mimic(root, name):
    mimic_data.write(root)
    for kind in ("metadata", "split"):
        rewrite(root / f"mimic-cxr-2.0.0-{kind}.csv.gz", mimic_data.dicom_id(0), name)
    return {}


def on_mimic(root):
    """The folder of images for the sets that have none of their own."""
    mimic_data.write(root / "mimic")
    return {"images_root": str(root / "mimic")}


def phrases(root, name):
    header = ("dicom_id", "category_name", "label_text", "path", "x", "y", "w", "h", "image_width", "image_height")
    row = (name, "Edema", "edema", "files/p10/p10000032/s50414267/x.jpg", 1, 1, 9, 9, 80, 96)
    write_csv(root / "MS_CXR_Local_Alignment_v1.1.0.csv", header, [row])
    return on_mimic(root / "..")


def graphs(root, name):
    for part in ("train", "valid", "test"):
        rows = [("10000032", "50414267", name)] if part == "train" else []
        write_csv(root / f"silver_dataset/splits/{part}.csv", ("subject_id", "study_id", "dicom_id"), rows)
    write_files(root / "silver_dataset", {"scene_graph/x_SceneGraph.json": "{}"})
    return on_mimic(root / "..")


def by_table(writer, table, before, column="{}", **settings):
    """A drawn folder in whose table one image is named otherwise."""

    def write(root, name):
        writer(root)
        rewrite(root / table, before, column.format(name))
        return settings

    return write


def covid_lists(root, name):
    lists = {"train.txt": f"1 {name} normal rsna\n", "test.txt": "2 b.png normal rsna\n"}
    write_files(root, lists | {f"{part}/b.png": images.encode_png(ellipses(1)) for part in ("train", "test")})
    return {}


def coco_lists(root, name):
    picture = {"id": 1, "file_name": name, "height": 96, "width": 80}
    content = json.dumps({"images": [picture], "annotations": [], "categories": []})
    write_files(root, {f"TBX11K_{part}.json": content for part in ("train", "val")} | {"imgs/x": ""})
    return {}


def box_lists(root, name):
    entries = json.dumps([{"file_name": name, "syms": [], "boxes": []}])
    write_files(root, {"train.json": entries, "test.json": "[]"})
    return {}


def objects(root, name):
    write_csv(root / "train.csv", ("image_name", "annotation"), [(name, "")])
    write_csv(root / "dev.csv", ("image_name", "annotation"), [])
    return {}


def vindr(root):
    vindr_data.write(root, "kaggle")


def indiana(root):
    iu_data.write(root, "csv")


ROOT_UP = "../outside"
CASES = {
    "mimic_cxr, image": (mimic_cxr, mimic, UP),
    "mimic_cxr, absolute": (mimic_cxr, mimic, "{outside}"),
    "ms_cxr": (ms_cxr, phrases, UP),
    "chest_imagenome": (chest_imagenome, graphs, UP),
    "chexpert": (
        chexpert,
        by_table(chexpert_data.write, "train.csv", f"{EDITION}/train/patient00003/study1/view1_frontal.jpg"),
        f"{EDITION}/../patient00003/study1/view1.jpg",
    ),
    "chexpert, absolute": (
        chexpert,
        by_table(chexpert_data.write, "train.csv", f"{EDITION}/train/patient00003/study1/view1_frontal.jpg"),
        f"{EDITION}//patient00003/study1/view1.jpg",
    ),
    "chexpert, test study": (
        chexpert,
        by_table(chexpert_data.write, "groundtruth.csv", "CheXpert-v1.0/test/patient64741/study1"),
        "CheXpert-v1.0/../patient00003/study1",
    ),
    "padchest": (
        padchest,
        by_table(padchest_data.write, padchest_data.TABLE, "1_a.png,0,", "{},0,"),
        "../../outside.png",
    ),
    "padchest, folder": (
        padchest,
        by_table(padchest_data.write, padchest_data.TABLE, "1_a.png,0,", "outside.png,{},"),
        "..",
    ),
    "iu_xray": (iu_xray, by_table(indiana, "indiana_projections.csv", "1_IM-0001-4001.dcm.png"), "../outside.png"),
    "chestxray14": (
        chestxray14,
        by_table(nih_data.write, "Data_Entry_2017_v2020.csv", "00000003_000.png"),
        "../outside.png",
    ),
    "rsna_pneumonia": (
        rsna_pneumonia,
        by_table(rsna_data.write, "stage_2_train_labels.csv", rsna_data.IDS[0]),
        ROOT_UP,
    ),
    "siim_pneumothorax": (siim_pneumothorax, by_table(siim_data.write, "train-rle.csv", siim_data.name(0)), ROOT_UP),
    "vindr_cxr": (vindr_cxr, by_table(vindr, "train.csv", "0" * 31 + "2"), ROOT_UP),
    "covidx": (covidx, covid_lists, "../../outside.png"),
    "tbx11k": (tbx11k, coco_lists, "health/../../../outside.png"),
    "chestx_det10": (chestx_det10, box_lists, "../outside.png"),
    "chestx_det10, absolute": (chestx_det10, box_lists, "{outside}.png"),
}
"""Module, what writes a data set in which one image has a given name, and that name."""


@pytest.mark.parametrize("case", CASES)
def test_a_table_that_leads_elsewhere(case, tmp_path, monkeypatch):
    module, write, name = CASES[case]
    root, outside = tmp_path / "set", tmp_path / "outside"
    picture = {".jpg": images.encode_jpeg(ellipses(1)), ".png": images.encode_png(ellipses(1))}
    picture |= {suffix: dicom(ellipses(1), bits=8, ViewPosition="PA") for suffix in (".dcm", ".dicom", "")}
    files = {f"outside{suffix}": data for suffix, data in picture.items()}
    write_files(tmp_path, files | {"patient00003/study1/view1.jpg": picture[".jpg"]})
    settings = write(root, name.replace("{outside}", str(outside)))
    opened = []
    read_bytes = images.read_bytes
    monkeypatch.setattr(images, "read_bytes", lambda path: opened.append(str(path)) or read_bytes(path))
    config = {"root": str(root), "size": 16, **settings}
    plan = module.plan(type(module.CONFIG)(name="x", **config))
    assert [rejection.reason for rejection in plan.rejections].count("path_outside_root") == 1
    if plan.splits:
        assert make(module, **config).counts
    assert not [path for path in opened if ".." in path or not path.startswith(str(tmp_path))]
    assert not any("outside" in path.rpartition("/")[2] for path in opened)


def test_only_the_last_part_of_a_name_counts(tmp_path):
    """Object-CXR names files, and nothing before a name is looked at."""
    write_files(tmp_path, {"outside.jpg": images.encode_jpeg(ellipses(1))})
    objects(tmp_path / "set", "../outside.jpg")
    plan = object_cxr.plan(type(object_cxr.CONFIG)(name="x", root=str(tmp_path / "set")))
    assert [rejection.reason for rejection in plan.rejections] == ["missing_file"]


def test_your_own_manifest_may_name_files_anywhere(tmp_path):
    write_files(tmp_path, {"outside.png": images.encode_png(ellipses(1)), "beside.png": images.encode_png(ellipses(2))})
    rows = [(str(tmp_path / "outside.png"), "Clear lungs."), ("../beside.png", "Clear lungs.")]
    write_csv(tmp_path / "own/list.csv", ("image", "report"), rows)
    made = make(image_report_folder, manifest=str(tmp_path / "own/list.csv"), size=16)
    assert (sum(made.counts.values()), made.reasons) == (2, {})


@pytest.mark.parametrize(
    ("root", "path", "inside"),
    [
        ("/data/set", "/data/set/a/b.png", True),
        ("/data/set/", "/data/set/a..b.png", True),
        ("/data/set", "/data/settle/b.png", False),
        ("/data/set", "/data/set/../b.png", False),
        ("/data/set", "/data/set/a/../b.png", False),
        ("/data/set", "b.png", False),
        (".", "a/b.png", True),
        (".", "./a/b.png", True),
        (".", "/a/b.png", False),
        (".", "../b.png", False),
        ("../set", "../set/b.png", True),
        ("../set", "../set/../b.png", False),
        ("/", "/b.png", True),
    ],
)
def test_inside(root, path, inside):
    assert common._inside(path, [root]) is inside
