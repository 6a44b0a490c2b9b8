"""Ids of a split: kept beside the records, hashed whatever their order, compared between splits."""

import numpy as np
import pytest

from medvlp_jax.data.record_ids import check_disjoint, record_ids, split_hash


class Source:
    """Records of which only ids are read; counts the reads."""

    def __init__(self, folder, split, patients):
        self.folder, self.split, self.name, self.patients, self.reads = folder, split, "made_up", patients, 0

    def __len__(self):
        return len(self.patients)

    def __getitem__(self, i):
        self.reads += 1
        return {"patient_id": np.int64(self.patients[i]), "study_id": np.int64(i), "image_id": np.int64(100 + i)}


def test_ids_are_read_once(tmp_path):
    source = Source(tmp_path, "train", [7, 7, 2**62])
    assert record_ids(source)["patient_id"].tolist() == [7, 7, 2**62]
    assert record_ids(source)["image_id"].tolist() == [100, 101, 102]
    assert source.reads == 3


def test_a_kept_file_that_is_damaged_or_of_another_length_is_made_again(tmp_path):
    record_ids(Source(tmp_path, "train", [1, 2]))
    assert record_ids(Source(tmp_path, "train", [1, 2, 3]))["patient_id"].tolist() == [1, 2, 3]
    (kept,) = (tmp_path / "record_ids").glob("*.npz")
    kept.write_bytes(kept.read_bytes()[:40])
    assert record_ids(Source(tmp_path, "train", [1, 2, 3]))["patient_id"].tolist() == [1, 2, 3]


def test_hash_names_the_set():
    assert split_hash(np.array([3, 1, 2])) == split_hash(np.array([1, 2, 3]))
    assert split_hash(np.array([3, 1])) != split_hash(np.array([1, 2, 3]))


def test_shared_patients_are_refused_unless_allowed(tmp_path):
    train, test = Source(tmp_path, "train", [1, 2, 3]), Source(tmp_path, "test", [3, 4])
    with pytest.raises(
        ValueError, match=r"1 patients of the evaluation split 'test' .* 'train'.*allow_patient_overlap"
    ):
        check_disjoint(train, test)
    assert check_disjoint(train, test, allow=True) == 1
    assert check_disjoint(train, Source(tmp_path, "validation", [5])) == 0
