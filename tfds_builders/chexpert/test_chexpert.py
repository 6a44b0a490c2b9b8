"""CheXpert on drawn files and, where its tables are at hand, on the real ones."""

import collections

import pytest

pytest.importorskip("tensorflow_datasets")

from medvlp_jax import prepare
from medvlp_jax.data import labels, records, splits
from tfds_builders.chexpert import chexpert, make_dummy_data
from tfds_builders.testing import make, public_table

SIZE = 32


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chexpert")
    make_dummy_data.write(folder)
    return folder


def test_every_row(root):
    made = make(chexpert, root=str(root), size=SIZE, per_class=0)
    assert made.counts == {"train": 9, "validation": 1, "test": 2}
    assert made.reasons == {"bad_label": 1, "bad_path": 1, "missing_file": 1}
    first = made.examples["train/patient00001/study1/view1_frontal"]
    assert labels.label_states(first["labels"]) == {"No Finding": 1, "Pleural Effusion": 0}
    assert (first["view"], first["has_findings"], first["age"], first["sex"]) == ("AP", False, 68, "F")
    assert made.examples["train/patient00002/study2/view1_frontal"]["view"] == "FRONTAL"
    assert labels.label_states(made.examples["train/patient00002/study1/view1_frontal"]["labels"])["Pneumonia"] == -1
    test = made.splits["test"]
    assert {example["view"] for example in test.values()} == {"FRONTAL", "LATERAL"}
    assert all(labels.label_states(example["labels"])["Edema"] == 1 for example in test.values())
    assert make(chexpert, root=str(root), size=SIZE, only_frontal=True).reasons["not_frontal"] == 2


def test_another_table_for_train(root, tmp_path):
    """Labels by another program in the same layout; valid.csv and the test studies stay as they are."""
    header, *rows = (root / "train.csv").read_text().splitlines()
    (tmp_path / "train_visualCheXbert.csv").write_text("\n".join([header, rows[0]]))
    made = make(
        chexpert, root=str(root), train_table=str(tmp_path / "train_visualCheXbert.csv"), size=SIZE, per_class=0
    )
    assert made.counts == {"train": 1, "validation": 1, "test": 2}
    assert "train_visualCheXbert.csv" in made.provenance["tables"]
    with pytest.raises(ValueError, match="looked for absent"):
        make(chexpert, root=str(root), train_table=str(tmp_path / "absent.csv"))
    names = [
        "train/patient00001/study1/view1_frontal.jpg",
        "CheXpert-v1.0-small/valid/patient64541/study1/view1_frontal.jpg",
    ]
    (tmp_path / "own.csv").write_text("Path,Fracture\n" + "".join(f"{name},-1\n" for name in names))
    made = make(chexpert, root=str(root), label_table=str(tmp_path / "own.csv"), splits="train", size=SIZE, per_class=0)
    states = [labels.label_states(example["labels"]) for example in made.splits["train"].values()]
    assert sorted(map(len, states)) == [0] * 8 + [1]


def test_five_by_200(root):
    made = make(chexpert, root=str(root), size=SIZE, per_class=2, splits="train,test_5x200")
    chosen = made.splits["test_5x200"]
    kinds = collections.Counter(splits.class_of(labels.label_states(x["labels"])) for x in chosen.values())
    assert kinds == {"Edema": 2, "Cardiomegaly": 1}  # not the uncertain one, not the one with a fracture
    patients = {x["patient_id"] for x in chosen.values()}
    assert len(patients) == 3
    assert not patients & {x["patient_id"] for x in made.splits["train"].values()}
    assert make(chexpert, root=str(root), size=SIZE, per_class=2).splits["test_5x200"].keys() == chosen.keys()
    items = [{"split": "train", "view": "AP", "patient_id": str(i), "image": str(i)} for i in range(40)]
    items = [{**item, "labels": {"Edema": 1}} for item in items]
    seeds = [frozenset(x["image"] for x in splits.five_by_200(items, 5, seed)) for seed in range(3)]
    assert len(set(seeds)) == 3


def test_full_edition_and_prepare(tmp_path, capsys):
    make_dummy_data.write(tmp_path / "raw", "CheXpert-v1.0")
    command = ["chexpert", "--root", str(tmp_path / "raw"), "--data_dir", str(tmp_path), "--size=32", "--per_class=1"]
    assert prepare.main([*command, "--workers=1"]) == 0
    assert "test_5x200 drawn with seed 0" in capsys.readouterr().out
    assert len(records.RecordSource(tmp_path, "chexpert", "test_5x200")) == 2


def test_real_train_table(tmp_path):
    """Counts of the published train.csv, and of the pools that 5x200 draws from."""
    table = public_table("chexpert_train.csv.gz")
    (tmp_path / "train.csv.gz").symlink_to(table)
    plan = chexpert.Table(tmp_path / "train.csv.gz", ("Path", "Frontal/Lateral", "AP/PA", *labels.CHEXPERT_LABELS))
    items = [chexpert._item(tmp_path, number, row, "train") for number, row in plan]
    assert len(items) == 223_414
    assert plan.rejections == []
    assert len({item["patient_id"] for item in items}) == 64_540
    assert len({item["study_id"] for item in items}) == 187_641
    views = collections.Counter(item["view"] for item in items)
    assert views == {"AP": 161_590, "PA": 29_420, "FRONTAL": 17, "LATERAL": 32_387}
    states = collections.Counter(state for item in items for state in item["labels"].items())
    assert [states["Consolidation", state] for state in (1, 0, -1)] == [14_783, 28_097, 27_742]
    assert [states["Support Devices", state] for state in (1, 0, -1)] == [116_001, 6_137, 1_079]
    frontal = [item for item in items if item["view"] != "LATERAL"]
    pools = collections.Counter(splits.class_of(item["labels"]) for item in frontal)
    expected = {
        "Atelectasis": 1087,
        "Cardiomegaly": 1034,
        "Consolidation": 537,
        "Edema": 2257,
        "Pleural Effusion": 2425,
    }
    assert {name: pools[name] for name in expected} == expected
    chosen = splits.five_by_200(items, 200, 0)
    assert len(chosen) == len({item["patient_id"] for item in chosen}) == 1000
