"""Records on disk: written through TFDS, read back at random, without TensorFlow."""

import hashlib
import multiprocessing
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from medvlp_jax.data import images, labels, records, staging
from tfds_builders.image_report_folder.make_dummy_data import ellipses

tfds = pytest.importorskip("tensorflow_datasets")
COUNTS = {"train": 20, "test": 3}


def make_examples(item, config):
    png = images.encode_png(ellipses(item, 32, 32))
    marked = item % 2 == 1
    example = records.example(
        image=png,
        patient_id=f"p{item // 2}",
        study_id=f"s{item}",
        image_id=f"i{item}",
        findings="Épanchement. No edema." if marked else "",
        impression="Normal.",
        report="whole report",
        sentences=["Épanchement.", "No edema."] if marked else [],
        labels=labels.label_vector({"Edema": labels.ABSENT}),
        view="PA",
        age=71 if marked else -1,
        sex="F" if marked else "",
        boxes=[{"box": [0, 0.1, 0.5, 1], "finding": "Pleural Effusion", "sentence": 0}] * 2 if marked else [],
        masks=[{"mask": png, "finding": "Pleural Effusion"}] if marked else [],
        lung_mask=png if marked else b"",
        public=marked,
    )
    return [(item, example)]


class TinyRecords(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in ("default", "other")]  # noqa: RUF012
    staging = None

    def _info(self):
        return records.dataset_info(self, "tiny")

    def _split_generators(self, dl_manager):
        plan = {split: list(range(100 * number, 100 * number + n)) for number, (split, n) in enumerate(COUNTS.items())}
        return staging.split_generators(self, plan, make_examples)

    def _generate_examples(self, examples):
        yield from examples


def build(folder, config):
    tfds.disable_progress_bar()
    TinyRecords(data_dir=os.fspath(folder), config=config, file_format="array_record").download_and_prepare()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    build(folder, "default")
    return folder


def test_record_round_trip(data_dir):
    source = records.RecordSource(data_dir, "tiny_records", "train")
    assert len(source) == COUNTS["train"]
    by_id = {int(source[i]["image_id"]): source[i] for i in range(len(source))}
    marked, plain = by_id[records.hashed_id("i7")], by_id[records.hashed_id("i8")]
    png = images.encode_png(ellipses(7, 32, 32))
    assert marked["image"] == marked["lung_mask"] == png
    assert marked["findings"] == "Épanchement. No edema."
    assert marked["sentences"] == ["Épanchement.", "No edema."]
    assert (marked["has_findings"], plain["has_findings"], plain["has_impression"]) == (True, False, True)
    assert marked["labels"].dtype == np.int8
    assert labels.label_states(marked["labels"]) == {"Edema": 0}
    assert marked["boxes"]["finding"] == ["Pleural Effusion"] * 2
    np.testing.assert_allclose(marked["boxes"]["box"], [[0, 0.1, 0.5, 1]] * 2, rtol=1e-6)
    assert marked["boxes"]["sentence"].tolist() == [0, 0]
    assert marked["masks"] == {"mask": [png], "finding": ["Pleural Effusion"]}
    assert plain["boxes"]["box"].shape == (0, 4)
    assert plain["sentences"] == plain["masks"]["mask"] == []
    assert plain["lung_mask"] == b""
    assert (marked["view"], marked["report"], bool(marked["public"])) == ("PA", "whole report", True)
    assert (marked["age"], marked["sex"], plain["age"], plain["sex"]) == (71, "F", -1, "")
    assert by_id[records.hashed_id("i6")]["patient_id"] == marked["patient_id"] == records.hashed_id("p3")
    assert set(marked) == set(records.features())


def test_records_of_earlier_versions_lack_fields(data_dir):
    from tensorflow_datasets.proto import tf_example_pb2

    source = records.RecordSource(data_dir, "tiny_records", "train")
    data = source._records().data_source[0]
    stored = tf_example_pb2.Example.FromString(data)
    for name in ("age", "sex", "own_labels/name", "own_labels/state"):
        stored.features.feature.pop(name, None)
    before, now = records.parse(stored.SerializeToString()), records.parse(data)
    assert set(before) == set(now)
    assert (before["age"], before["sex"], before["own_labels"]["name"]) == (-1, "", [])
    assert before["findings"] == now["findings"]


def test_records_are_read_as_tfds_reads_them(data_dir):
    source = records.RecordSource(data_dir, "tiny_records", "train")
    builder = tfds.builder_from_directory(str(source.folder))
    decoders = {"image": tfds.decode.SkipDecoding()}
    for record, expected in zip(source, builder.as_data_source(split="train", decoders=decoders), strict=True):
        for name in ("findings", "impression", "report", "view", "sex"):
            assert record[name] == expected[name].decode()
        assert record["sentences"] == [sentence.decode() for sentence in expected["sentences"]]
        for name in ("patient_id", "study_id", "image_id", "has_findings", "has_impression", "public", "age"):
            assert record[name] == expected[name]
            assert type(record[name]) is type(expected[name])
        assert (record["image"], record["lung_mask"]) == (expected["image"], expected["lung_mask"])
        np.testing.assert_array_equal(record["labels"], expected["labels"])
        assert record["labels"].dtype == expected["labels"].dtype
    with pytest.raises(ValueError, match="has no image"):
        records.parse(b"")


def test_reading_needs_no_tensorflow(data_dir):
    code = (
        "import sys; from medvlp_jax.data.records import RecordSource;"
        f"RecordSource({os.fspath(data_dir)!r}, 'tiny_records', 'test')[0];"
        "sys.exit(any(name in sys.modules for name in ('tensorflow', 'torch')))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_indices(data_dir):
    source = records.RecordSource(data_dir, "tiny_records", "test")
    assert source[-1]["image_id"] == source[np.int64(2)]["image_id"]
    assert len({int(source[i]["image_id"]) for i in range(3)}) == 3
    with pytest.raises(IndexError, match="Record 3"):
        source[3]
    assert len(records.RecordSource(data_dir, "tiny_records", "train[:25%]")) == 5


def _first_image(source):
    return source[0]["image"]


def test_source_travels(data_dir):
    source = records.RecordSource(data_dir, "tiny_records/default", "train")
    first = _first_image(source)
    assert pickle.loads(pickle.dumps(source))[0]["image"] == first
    with ThreadPoolExecutor(4) as threads:
        images_by_thread = list(threads.map(lambda i: source[i]["image"], list(range(20)) * 5))
    assert images_by_thread[:20] * 5 == images_by_thread


FORKING = """
import os, sys
from medvlp_jax.data.records import RecordSource
source = RecordSource(sys.argv[1], "tiny_records", "train")
if sys.argv[2] == "read":
    source[0]
child = os.fork()
if child == 0:
    try:
        status = len(source[0]["image"]) == 0
    except RuntimeError as error:
        status = 7 if "'spawn'" in str(error) else 8
    os._exit(status)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork")
@pytest.mark.parametrize(("before", "status"), [("only opened", 0), ("read", 7)])
def test_fork_before_the_first_read_works_and_after_it_says_why_not(data_dir, before, status):
    command = [sys.executable, "-c", FORKING, os.fspath(data_dir), before]
    assert subprocess.run(command, timeout=60, check=False).returncode == status


def test_unprepared_names_the_command(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"python -m medvlp_jax\.prepare cxr_phantom/x --data_dir"):
        records.RecordSource(tmp_path, "cxr_phantom/x", "train")
    with pytest.raises(FileNotFoundError, match="prepare cxr_phantom --data_dir"):
        records.prepared_folder(tmp_path, "cxr_phantom")


def test_unknown_split_lists_the_known(data_dir):
    with pytest.raises(ValueError, match="no split 'validation'; it has: test, train"):
        records.RecordSource(data_dir, "tiny_records", "validation")


def test_versions_and_configs(tmp_path):
    for place in ("set/a/1.9.0", "set/a/1.10.0", "set/a/incomplete.XYZ_2.0.0", "set/b/1.0.0"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "dataset_info.json").write_text("{}")
    assert records.prepared_folder(tmp_path, "set/a") == tmp_path / "set/a/1.10.0"
    with pytest.raises(ValueError, match="set/a, set/b"):
        records.prepared_folder(tmp_path, "set")
    (tmp_path / "set/default/1.0.0").mkdir(parents=True)
    (tmp_path / "set/default/1.0.0/dataset_info.json").write_text("{}")
    assert records.prepared_folder(tmp_path, "set") == tmp_path / "set/default/1.0.0"


def test_hashes_are_stable():
    digest = hashlib.blake2b(b"p10000032").digest()[:8]
    assert records.hashed_id("p10000032") == int.from_bytes(digest, "big", signed=True)
    assert -(2**63) <= records.hashed_id("x") < 2**63
    assert len({records.hashed_id(str(i)) for i in range(1000)}) == 1000
    assert records.text_hash("No  Effusion.\n") == records.text_hash("no effusion.") != records.text_hash("effusion")
    assert all(0 <= records.text_hash(str(i)) < 2**31 for i in range(100))


def test_example_flags_follow_the_text():
    example = records.example(image=b"", patient_id="p", study_id="s", image_id="i", findings=" ", impression="x")
    assert (example["has_findings"], example["has_impression"], example["public"]) == (False, True, False)
    assert example["labels"].tolist() == [-2] * 14
    assert example[records.SOURCE]["patient_id"] == "p"
