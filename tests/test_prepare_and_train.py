"""From a downloaded folder to a training run, with the commands of the README."""

import json

import pytest
import tiny

pytest.importorskip("tensorflow_datasets")

from medvlp_jax import prepare
from medvlp_jax.data import records
from tfds_builders.mimic_cxr import make_dummy_data


@pytest.mark.slow
def test_mimic_cxr_from_a_downloaded_folder_to_a_run(tmp_path, capsys):
    """The default data set of configs/imitate.py: what it says when unprepared, the build, two steps."""
    make_dummy_data.write(tmp_path / "raw", copies=4)
    data = tiny.make_tower(tmp_path / "data")
    with pytest.raises(FileNotFoundError, match="prepare mimic_cxr --root /path/to/mimic_cxr --data_dir"):
        records.RecordSource(data, "mimic_cxr")
    command = ["mimic_cxr", "--root", str(tmp_path / "raw"), "--data_dir", str(data), "--size=64", "--limit=1000"]
    assert prepare.main([*command, "--workers=1"]) == 0
    printed = capsys.readouterr().out
    assert "Counted: ViewPosition AP: 12, ViewPosition PA: 21" in printed
    folder = data / "mimic_cxr/default/1.0.0"
    counts = json.loads((folder / "counts.json").read_text())
    assert {split: c["records"] for split, c in counts["splits"].items()} == {"train": 17, "validation": 8, "test": 8}
    assert counts["patients_in_two_splits"] == 0
    for name in ("counts.json", "rejected.csv", "provenance.json"):
        assert "lungs are clear" not in (folder / name).read_text()
    more = {"data.name": "mimic_cxr", "total_steps": 2, "checkpoint_every_steps": 2, "final_evaluators": "()"}
    tiny.run(tiny.command(data, tmp_path / "run", arg="small", **more))
    assert sorted(tiny.losses(tmp_path / "run")) == [1, 2]
