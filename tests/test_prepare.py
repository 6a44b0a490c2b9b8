"""The prepare command: settings, side tables, repeated, changed, interrupted and impossible builds."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("tensorflow_datasets")

from medvlp_jax import prepare
from medvlp_jax.data import records, staging
from medvlp_jax.data.build_settings import config_of, load

ROOT = Path(__file__).resolve().parents[1]
DUMMY = ROOT / "tfds_builders" / "image_report_folder" / "dummy_data" / "manifest.csv"
COLUMNS = "image=file,patient_id=pid,study_id=sid,image_id=iid,split=fold,report=report_text,findings=FINDINGS"
FOLDER = ["image_report_folder", "--manifest", str(DUMMY), "--columns", COLUMNS, "--size=32", "--workers=1"]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("data")
    assert prepare.main([*FOLDER, "--name", "dummy", "--data_dir", str(data_dir)]) == 0
    return data_dir


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def folder_of(data_dir):
    return data_dir / "image_report_folder" / "dummy" / "1.0.0"


def test_a_setting_newer_than_the_folder(tmp_path):
    """A folder that was prepared before a setting existed was prepared with its default."""
    config = config_of(*load("image_report_folder"), "image_report_folder", {"size": "32"})
    before = {name: value for name, value in staging.config_dict(config).items() if name not in ("labels", "deid")}
    (tmp_path / "provenance.json").write_text(json.dumps({"config": before}))
    prepare._same_settings(tmp_path, config)
    config.labels = "rules"
    with pytest.raises(prepare.PrepareError, match="labels: built with 'own', asked 'rules'"):
        prepare._same_settings(tmp_path, config)


def test_side_tables(built):
    folder = folder_of(built)
    counts = json.loads((folder / "counts.json").read_text())
    sources = {split: records.RecordSource(built, "image_report_folder/dummy", split) for split in counts["splits"]}
    assert {split: c["records"] for split, c in counts["splits"].items()} == {s: len(x) for s, x in sources.items()}
    rejected = table(folder / "rejected.csv")
    assert sum(counts["rejected"].values()) == len(rejected)
    ids = table(folder / "ids.csv")
    assert len(ids) + len(rejected) == len(table(DUMMY))
    read = [source[index] for source in sources.values() for index in range(len(source))]
    hashes = {int(record["image_id"]) for record in read}
    assert hashes == {int(row["image_id_hash"]) for row in ids} == {records.hashed_id(row["image_id"]) for row in ids}
    assert all(len(row["sha256"]) == 64 for row in ids)
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["config"]["size"] == 32
    assert len(provenance["manifest_sha256"]) == 64
    assert counts["splits"]["train"]["labels"]["Pneumonia"] == {"present": 1, "absent": 2, "uncertain": 1}


def test_no_report_text_or_raw_id_outside_the_records(built):
    folder = folder_of(built)
    for name in ("counts.json", "rejected.csv", "provenance.json", "dataset_info.json"):
        assert "Normal chest" not in (folder / name).read_text()
    assert not (built / ".staging").exists()


def test_second_run_changes_nothing(built, capsys):
    before = {path: path.stat().st_mtime_ns for path in folder_of(built).iterdir()}
    assert prepare.main([*FOLDER, "--name", "dummy", "--data_dir", str(built)]) == 0
    assert f"Already prepared: {folder_of(built)}" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in folder_of(built).iterdir()} == before


def test_other_settings_under_the_same_name(built, capsys):
    assert prepare.main([*FOLDER, "--name", "dummy", "--data_dir", str(built), "--fit=squash"]) == 1
    message = capsys.readouterr().err
    assert "fit: built with 'pad', asked 'squash'" in message
    assert "--overwrite" in message


def test_overwrite(built, tmp_path):
    data_dir = tmp_path / "copy"
    shutil.copytree(built, data_dir)
    same = [*FOLDER, "--name", "dummy", "--data_dir", str(data_dir), "--overwrite"]
    assert prepare.main([*same, "--config.fit=squash", "--keep_staging"]) == 0
    assert json.loads((folder_of(data_dir) / "provenance.json").read_text())["config"]["fit"] == "squash"
    assert list((data_dir / ".staging").rglob("*.msgpack"))
    assert prepare.main(same) == 0  # chunks of other settings are not used
    assert same_bytes(folder_of(data_dir), folder_of(built))


def same_bytes(a, b):
    names = sorted(path.name for path in a.iterdir())
    assert names == sorted(path.name for path in b.iterdir())
    return [name for name in names if (a / name).read_bytes() != (b / name).read_bytes()] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cxr_fantom"], "Unknown data set 'cxr_fantom'. Did you mean 'cxr_phantom'? Known: cxr_phantom, image"),
        ([*FOLDER, "--sise=3"], "no setting 'sise'. Settings and their defaults: name='default'"),
        ([*FOLDER, "--limit"], "--limit has no value"),
        ([*FOLDER, "--limit", "many"], "--limit 'many' is not a int"),
        ([*FOLDER, "--public", "perhaps"], "not true or false"),
        ([*FOLDER, "more"], "Unexpected argument 'more'"),
        ([*FOLDER, "--name", "a/b"], "plain folder name"),
        ([*FOLDER, "--fit", "crop"], "choices: pad, shorter, squash"),
        ([*FOLDER, "--workers=0"], "workers=0"),
        ([*FOLDER, "--columns", "image=pixels"], "'pixels', which the manifest lacks. Its columns: file, pid"),
        (["cxr_phantom/tiny"], "no config 'tiny'"),
        (["mimic_cxr", "--list"], "python -m medvlp_jax.prepare mimic_cxr --describe"),
        (["--verify"], "Which data set?"),
        (["mimic_cxr", "--describe", "--size=3"], "--describe takes no settings but --name; --size given"),
        (["cxr_phantom", "--verify"], "is not prepared under"),
        (["cxr_fantom", "--verify"], "Did you mean 'cxr_phantom'?"),
        (["cxr_phantom", "--json", "absent/out.json"], "there is no folder absent"),
        (["cxr_phantom", "--size=97"], "differ from those of the config 'default'"),
    ],
)
def test_mistakes_are_explained(arguments, message, tmp_path, capsys):
    assert prepare.main([*arguments, "--data_dir", str(tmp_path)]) == 1
    assert message in capsys.readouterr().err


def test_listing(tmp_path, capsys):
    assert prepare.main([]) == 0
    printed = capsys.readouterr().out
    assert [line.split(":")[0].strip() for line in printed.splitlines()[1:-2]] == list(prepare.BUILDERS)
    assert "not available" not in printed
    assert prepare.main(["--list", "--json", str(tmp_path / "list.json")]) == 0
    assert list(json.loads((tmp_path / "list.json").read_text())) == sorted(prepare.BUILDERS)


def test_describe(built, tmp_path, capsys):
    command = ["image_report_folder", "--describe", "--data_dir", str(built), "--json", str(tmp_path / "d.json")]
    assert prepare.main(command) == 0
    printed = capsys.readouterr().out
    assert "  --split_conflict 'error'  A patient in two splits:" in printed
    assert "Prepared: image_report_folder/dummy 1.0.0: 5 train, 2 validation, 1 test" in printed
    told = json.loads((tmp_path / "d.json").read_text())
    assert told["settings"]["empty_report"] == {
        "type": "str",
        "meaning": '"reject" or "keep" rows without findings and impression.',
    }
    assert told["configs"]["default"]["size"] == 256
    assert told["prepared"][0]["records"] == {"train": 5, "validation": 2, "test": 1}
    assert told["page"] == "tfds_builders/image_report_folder/README.md"


@pytest.mark.parametrize("name", list(prepare.BUILDERS))
def test_every_set_can_be_described(name, tmp_path):
    told = prepare.describe_build(name, tmp_path)
    assert bool(told["access"]) == (name not in ("cxr_phantom", "image_report_folder"))
    assert told["prepared"] == []
    (own, *_) = told["configs"].values()
    assert set(own) <= set(told["settings"])
    assert [key for key in own if not told["settings"][key]["meaning"]] == []


def test_verify(built, tmp_path, capsys):
    shutil.copytree(built, tmp_path / "data")
    folder = folder_of(tmp_path / "data")
    command = ["image_report_folder", "--name", "dummy", "--verify", "--data_dir", str(tmp_path / "data")]
    assert prepare.main([*command, "--json", str(tmp_path / "v.json")]) == 0
    assert "records read: 5 train, 2 validation, 1 test\nAs it was built." in capsys.readouterr().out
    told = json.loads((tmp_path / "v.json").read_text())
    assert (told["problems"], told["files"]) == ([], len(list(folder.iterdir())) - 1)
    assert subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=folder, check=False).returncode == 0

    (folder / "ids.csv").write_text((folder / "ids.csv").read_text().replace("p1", "p7"))
    (folder / "stranger.txt").write_text("")
    (folder / "rejected.csv").unlink()
    counts = json.loads((folder / "counts.json").read_text())
    counts["splits"]["train"]["studies"] += 1
    (folder / "counts.json").write_text(json.dumps(counts))
    assert prepare.main([*command, "--json", str(tmp_path / "v.json")]) == 1
    problems = json.loads((tmp_path / "v.json").read_text())["problems"]
    assert problems == [
        "rejected.csv is not there",
        "counts.json differs from what was built",
        "ids.csv differs from what was built",
        "stranger.txt was not built here",
        "split train: studies differs from counts.json: 4, not 5",
    ]
    assert "Wrong: 5" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["cut", "bytes", "gone"])
def test_verify_damaged_shards(built, tmp_path, capsys, damage):
    shutil.copytree(built, tmp_path / "data")
    folder = folder_of(tmp_path / "data")
    (shard,) = folder.glob("*train.array_record*")
    data = shard.read_bytes()
    if damage == "cut":
        shard.write_bytes(data[: len(data) // 2])
    elif damage == "bytes":
        place = data.find(b"\x89PNG") + 60
        shard.write_bytes(data[:place] + bytes(64) + data[place + 64 :])
    else:
        shard.unlink()
    command = ["image_report_folder/dummy", "--verify", "--data_dir", str(tmp_path / "data")]
    assert prepare.main(command) == 1
    printed = capsys.readouterr().out
    assert f"WRONG  {shard.name} {'is not there' if damage == 'gone' else 'differs from what was built'}" in printed
    assert "WRONG  split train" in printed


def test_verify_sets_without_checksums_or_counts(built, tmp_path, capsys):
    shutil.copytree(built, tmp_path / "data")
    folder = folder_of(tmp_path / "data")
    (folder / "SHA256SUMS").unlink()
    command = ["image_report_folder/dummy", "--verify", "--data_dir", str(tmp_path / "data")]
    assert prepare.main(command) == 1
    assert "built by an earlier version" in capsys.readouterr().out
    (folder / "counts.json").write_text("{")
    assert prepare.main(command) == 1
    assert "counts.json cannot be read" in capsys.readouterr().out


def test_json_of_a_build_and_of_an_estimate(tmp_path, capsys):
    command = [*FOLDER, "--data_dir", str(tmp_path / "data"), "--json", str(tmp_path / "told.json")]
    assert prepare.main([*command, "--estimate"]) == 0
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["images"] == {"train": 6, "validation": 3, "test": 2}
    assert told["disk"] == 2 * told["bytes"] > 0
    for _ in range(2):  # built, then already prepared
        assert prepare.main(command) == 0
        told = json.loads((tmp_path / "told.json").read_text())
        assert told["counts"]["splits"]["train"]["records"] == 5
        assert told["provenance"]["config"]["size"] == 32
        assert str(tmp_path / "told.json") in capsys.readouterr().out


def test_estimate(tmp_path, capsys):
    assert prepare.main([*FOLDER, "--data_dir", str(tmp_path / "new" / "folder"), "--estimate"]) == 0
    printed = capsys.readouterr().out
    assert "Images: 6 train, 3 validation, 2 test" in printed
    assert "bad_label: 1" in printed
    assert re.search(r"Sample: 11 images, 8 kept; 0\.\d+ s each", printed)
    assert list(tmp_path.iterdir()) == []


def test_data_folder_that_is_a_file(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert prepare.main([*FOLDER, "--data_dir", str(tmp_path / "file")]) == 1
    assert "Choose another --data_dir" in capsys.readouterr().err


def test_one_build_at_a_time(tmp_path, capsys):
    arguments = [*FOLDER, "--name", "dummy", "--data_dir", str(tmp_path)]
    with prepare._lock(tmp_path / ".staging" / "image_report_folder" / "dummy" / "1.0.0"):
        assert prepare.main(arguments) == 1
    assert "Another process is preparing" in capsys.readouterr().err
    assert prepare.main(arguments) == 0


def test_full_disk(tmp_path, capsys, monkeypatch):
    def full(path, payload):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(staging, "_write", full)
    assert prepare.main([*FOLDER, "--data_dir", str(tmp_path)]) == 1
    assert "The disk is full" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.array_record*"))


def test_dead_worker(tmp_path, capsys, monkeypatch):
    def dies(jobs, make_examples, config, workers):
        from concurrent.futures.process import BrokenProcessPool

        raise RuntimeError("A worker process died: ...") from BrokenProcessPool()

    monkeypatch.setattr(staging, "_run", dies)
    assert prepare.main([*FOLDER, "--data_dir", str(tmp_path)]) == 1
    assert "PrepareError: A worker process died" in capsys.readouterr().err


SLOW_SET = """
import time
import tensorflow_datasets as tfds
from medvlp_jax.data import records, staging
from medvlp_jax.data.build_settings import config_of, load

def make_examples(item, config):
    time.sleep(0.002)
    if item % 50 == 7:
        return staging.Rejection("seventh", row=item)
    ids = dict(patient_id=f"p{item}", study_id=f"s{item}", image_id=f"i{item}")
    return [(item, records.example(image=bytes(1000), findings="clear", **ids))]

class SlowSet(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="default")]
    staging = None
    def _info(self):
        return records.dataset_info(self, "slow")
    def _split_generators(self, dl_manager):
        return staging.split_generators(self, {"train": range(400), "test": range(400, 420)}, make_examples)
    def _generate_examples(self, examples):
        yield from examples
"""
RUN = """
import sys
from medvlp_jax import prepare
prepare.BUILDERS["slow_set"] = "slow_set"
if __name__ == "__main__":
    sys.exit(prepare.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def slow_set(tmp_path_factory):
    """(folder, run): a data set that takes a second to build, already built once in folder/whole."""
    folder = tmp_path_factory.mktemp("slow")
    (folder / "slow_set.py").write_text(SLOW_SET)
    (folder / "run.py").write_text(RUN)

    def start(name, *more):
        command = [sys.executable, str(folder / "run.py"), "slow_set", "--data_dir", str(folder / name), *more]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(name, *more):
        process = start(name, *more)
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        return output

    run("whole", "--workers=1")
    return folder, start, run


def wait_for_chunks(folder, process, count=2):
    deadline = time.monotonic() + 60
    while len(list((folder / ".staging").rglob("train-*.msgpack"))) < count:
        assert process.poll() is None, "the build ended before it could be interrupted"
        assert time.monotonic() < deadline
        time.sleep(0.005)


def children_of(pid):
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


@pytest.mark.parametrize("how", ["SIGKILL", "SIGINT", "after the records"])
def test_interrupted_build_continues_to_the_same_bytes(slow_set, how):
    folder, start, run = slow_set
    name = how.replace(" ", "_")
    built = folder / name / "slow_set/default/1.0.0"
    if how == "after the records":  # the records were renamed into place, the side tables were not written
        run(name, "--workers=1", "--keep_staging")
        (built / "counts.json").unlink()
    else:
        process = start(name, "--workers=2")
        wait_for_chunks(folder / name, process)
        workers = children_of(process.pid) if how == "SIGKILL" else []
        process.send_signal(signal.Signals[how])
        _, errors = process.communicate(timeout=60)
        assert process.returncode != 0
        assert how == "SIGKILL" or "run the same command again" in errors
        deadline = time.monotonic() + 10
        while any(Path(f"/proc/{worker}").exists() for worker in workers):
            assert time.monotonic() < deadline, "worker processes outlive the build"
            time.sleep(0.05)
        assert not list((folder / name).rglob("counts.json"))
    output = run(name, "--workers=1")
    assert "finished chunks of an earlier run" in output
    assert "seventh: 9" in output
    assert same_bytes(built, folder / "whole/slow_set/default/1.0.0")
    assert not (folder / name / ".staging").exists()
    assert not list((folder / name).rglob("*incomplete*"))


def test_a_build_killed_three_times_ends_in_the_same_bytes(slow_set):
    """After the first chunk, after the fourth, and while or after the records are written."""
    folder, start, run = slow_set
    built = folder / "thrice" / "slow_set/default/1.0.0"
    for count in (1, 4):
        process = start("thrice", "--workers=2")
        wait_for_chunks(folder / "thrice", process, count)
        process.kill()
        process.communicate(timeout=60)
    process = start("thrice", "--workers=2")
    while process.poll() is None and not built.exists():
        if list(built.parent.glob("incomplete.*/*.array_record*")):
            break
        time.sleep(0.002)
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert "made 0." in run("thrice", "--workers=1")
    assert same_bytes(built, folder / "whole/slow_set/default/1.0.0")
    assert [path.name for path in (folder / "thrice").iterdir()] == ["slow_set"]


def test_a_folder_made_by_something_else_is_left_alone(built, tmp_path, capsys):
    data_dir = tmp_path / "copy"
    shutil.copytree(built, data_dir)
    (folder_of(data_dir) / "counts.json").unlink()
    assert prepare.main([*FOLDER, "--name", "dummy", "--data_dir", str(data_dir)]) == 1
    assert "was not finished by this command" in capsys.readouterr().err
    assert (folder_of(data_dir) / "dataset_info.json").exists()
