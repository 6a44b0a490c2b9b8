"""The diagnosis of a machine that is ready, and of several that are not."""

import sys
from pathlib import Path

import pytest
import tiny

from configs import imitate
from medvlp_jax import doctor


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def config(data):
    config = imitate.get_config("demo").unlock()
    config.update_from_flattened_dict({"data.dir": str(data), "data.name": "cxr_phantom/tiny"})
    return config


def test_a_ready_machine(data, tmp_path):
    command = [sys.executable, "-m", "medvlp_jax.doctor", "--config", "configs/imitate.py:demo"]
    fields = [f"--config.data.dir={data}", "--config.data.name=cxr_phantom/tiny", f"--workdir={tmp_path}"]
    done = tiny.run([*command, *fields], devices=4)
    assert "4 device(s) cpu in 1 process(es)" in done.stdout
    assert "mesh {'data': 4, 'fsdp': 1}: a sum over all devices is right" in done.stdout
    assert "cxr_phantom/tiny/train: " in done.stdout
    assert done.stdout.splitlines()[-1] == "ready"


def levels(findings):
    return [finding.level for finding in findings]


def test_a_mesh_that_does_not_fit(config):
    config.mesh.data = 3
    (_, failed) = doctor.devices(config)
    assert failed.level == "fail"
    assert "mesh.data=3" in failed.what


def test_damaged_and_missing_records(config, monkeypatch):
    assert set(levels(doctor.data_set(config))) == {"ok"}
    real = doctor.build.open_source

    class Damaged:
        def __init__(self, source):
            self.source, self.folder = source, source.folder

        def __len__(self):
            return len(self.source)

        def __getitem__(self, index):
            record = self.source[index]
            return {**record, "image": record["image"][:40]} if index == 0 else record

    monkeypatch.setattr(doctor.build, "open_source", lambda config, split: Damaged(real(config, split)))
    findings = list(doctor.data_set(config))
    assert set(levels(findings)) == {"fail"}
    assert "1 damaged: 0 (" in findings[0].what
    monkeypatch.undo()
    config.data.name = "nothing"
    assert set(levels(doctor.data_set(config))) == {"fail"}


def test_a_disk_that_cannot_be_written(tmp_path, monkeypatch):
    assert levels(doctor.disk(tmp_path / "not" / "yet", "runs"))[0] in ("ok", "warn")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(doctor.tempfile, "NamedTemporaryFile", full)
    (finding,) = doctor.disk(Path(tmp_path), "runs")
    assert finding.level == "fail"
    assert "No space left on device" in finding.what


def test_versions_out_of_range_are_warned_about(monkeypatch):
    assert "fail" not in levels(doctor.versions())
    monkeypatch.setattr(doctor.metadata, "version", lambda name: "0.0.1")
    assert levels(doctor.versions()).count("warn") > 5
