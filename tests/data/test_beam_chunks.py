"""Builds in an Apache Beam pipeline: the same bytes; refused with advice where Beam is not installed."""

import filecmp
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("tensorflow_datasets")

from medvlp_jax import prepare
from medvlp_jax.data import beam_chunks, staging

ROOT = Path(__file__).resolve().parents[2]
DUMMY = ROOT / "tfds_builders" / "image_report_folder" / "dummy_data" / "manifest.csv"
COLUMNS = "image=file,patient_id=pid,study_id=sid,image_id=iid,split=fold,report=report_text,findings=FINDINGS"
FOLDER = ["image_report_folder", "--manifest", str(DUMMY), "--columns", COLUMNS, "--size=32", "--name=dummy"]
DIRECT = "--runner=DirectRunner --direct_running_mode=in_memory"

has_beam = importlib.util.find_spec("apache_beam") is not None
needs_beam = pytest.mark.skipif(not has_beam, reason="apache_beam, the extra `beam`, is not installed")


def same_files(a, b):
    names = {path.relative_to(a) for path in a.rglob("*") if path.is_file()}
    assert names == {path.relative_to(b) for path in b.rglob("*") if path.is_file()}
    return [str(name) for name in sorted(names) if not filecmp.cmp(a / name, b / name, shallow=False)]


@pytest.mark.skipif(has_beam, reason="apache_beam is installed")
@pytest.mark.parametrize("how", [["--beam"], ["--beam_options=--runner=DirectRunner"]])
def test_without_beam_the_error_says_how_to_install_it(tmp_path, capsys, how):
    assert prepare.main([*FOLDER, "--data_dir", str(tmp_path), *how]) == 1
    assert beam_chunks.INSTALL in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.msgpack"))


@needs_beam
def test_same_bytes_as_without_beam(tmp_path):
    assert prepare.main([*FOLDER, "--data_dir", str(tmp_path / "plain"), "--workers=1"]) == 0
    more = ["--beam", f"--beam_options={DIRECT}"]
    assert prepare.main([*FOLDER, "--data_dir", str(tmp_path / "beam"), *more]) == 0
    assert same_files(tmp_path / "plain", tmp_path / "beam") == []


@needs_beam
@pytest.mark.slow
def test_same_bytes_from_worker_processes_and_chunks_are_reused(tmp_path):
    """In a folder of its own with a relative --data_dir: workers start elsewhere."""
    options = "--runner=DirectRunner --direct_running_mode=multi_processing --direct_num_workers=2"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "medvlp_jax.prepare", *FOLDER, "--keep_staging"]
    for more in (["--data_dir=plain", "--workers=1"], ["--data_dir=beam", f"--beam_options={options}"]):
        subprocess.run([*command, *more], cwd=tmp_path, env=environment, check=True, timeout=120)
    assert same_files(tmp_path / "plain", tmp_path / "beam") == []
    again = [*command, "--data_dir=beam", "--overwrite", "--workers=1"]
    done = subprocess.run(again, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True, timeout=120)
    assert "made 0" in done.stdout


@needs_beam
def test_files_that_workers_leave_elsewhere_are_missed(tmp_path):
    job = staging._Job(tmp_path / "train-000000.msgpack", "print", 3, b"")
    with pytest.raises(RuntimeError, match="1 of 1 chunk files are not in"):
        list(beam_chunks.run([job], lambda job: job.count, DIRECT))


@needs_beam
@pytest.mark.parametrize(("options", "message"), [("DirectRunner", "'DirectRunner' is none"), ("'x", "No closing")])
def test_options_that_are_none(options, message):
    with pytest.raises(ValueError, match=message):
        beam_chunks.check(options)
