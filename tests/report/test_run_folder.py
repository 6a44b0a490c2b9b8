"""What is read from a run folder, where its time went, and the curves drawn from it."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import fabricated
import pytest

from medvlp_jax.report import charts
from medvlp_jax.report.run_folder import distinct_names, read_run
from medvlp_jax.report.timing import timing


def test_training_validation_and_test_lines_are_told_apart(tmp_path):
    run = read_run(fabricated.make_run(tmp_path / "demo"))
    assert (run.name, run.step, run.parameters) == ("demo", 400, "339,144")
    assert [line["step"] for line in run.training] == [1, 100, 200, 300, 400, 400]
    assert [line["step"] for line in run.validation] == [200]
    assert run.log["devices"].startswith("1 cpu")
    assert [sentence.split()[0] for sentence in run.missing] == ["The"]  # the prepared data


def test_validation_lines_with_the_name_of_their_split(tmp_path):
    lines = [*fabricated.metrics(), {"step": 400, "validation/loss": 31.0}]
    assert read_run(fabricated.make_run(tmp_path, metrics=lines)).validation[-1] == {"step": 400, "loss": 31.0}


def test_damaged_and_missing_parts_become_sentences(tmp_path):
    folder = fabricated.make_run(tmp_path, scores=None, log=None)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 500, "loss": nu\n\n[1]\n{"step": 600, "loss": null, "seconds": 80}\n')
    run = read_run(folder)
    assert any("2 of 11 lines of metrics.jsonl are damaged" in sentence for sentence in run.missing)
    assert any("scores.json is not there" in sentence for sentence in run.missing)
    assert (run.scores, run.log, run.parameters) == (None, {}, "")
    assert "loss" not in run.training[-1]


def test_counts_come_from_beside_the_records(tmp_path):
    folder = tmp_path / "data" / "mine" / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").touch()
    splits = {"test": {"records": 2}, "other": {"records": 1}, "train": {"records": 5}}
    (folder / "counts.json").write_text(json.dumps({"splits": splits, "rejected": {}, "patients_in_two_splits": 0}))
    run = read_run(fabricated.make_run(tmp_path / "run", config={"data.name": "mine"}), data_dir=tmp_path / "data")
    assert list(run.counts["splits"]) == ["train", "test", "other"]
    assert run.missing == []


@pytest.mark.parametrize("content", ["{", "[1, 2]", "7"])
def test_a_damaged_config_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match="damaged"):
        read_run(tmp_path)


def test_folders_without_a_run_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run folder"):
        read_run(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="holds no run"):
        read_run(tmp_path)


def test_names_that_tell_runs_apart():
    paths = [Path("/x/a/run"), Path("/x/b/run"), Path("/x/b/other")]
    assert distinct_names(paths[1:]) == ["run", "other"]
    assert distinct_names(paths) == ["a/run", "b/run", "b/other"]


def test_time_is_what_the_last_account_says():
    found = timing(fabricated.metrics()[:3] + fabricated.metrics()[4:6] + fabricated.metrics()[7:])
    assert (found.steps, found.total, found.attempts, found.lost_steps) == (400, 100.0, 2, 30)
    assert (found.goodput, found.wait_share) == (pytest.approx(0.5), pytest.approx(10 / 60))
    assert found.uses[0] == ("step", "steps that stayed", 50.0, 0.5)
    assert sum(part for *_, part in found.uses) == pytest.approx(1.0)
    # 398 steps in 60 s; 16 images a step.
    assert (found.steps_per_second, found.images_per_second) == (pytest.approx(398 / 60), pytest.approx(398 / 60 * 16))


@pytest.mark.parametrize("lines", [[], [{"step": 3, "loss": 1.0}], [{"step": 0, "seconds": 0.0, "goodput/step": 1.0}]])
def test_no_account_no_timing(lines):
    assert timing(lines) is None


def test_curves_and_their_sentences(tmp_path):
    drawn = {chart.title: chart for chart in charts.training_charts(read_run(fabricated.make_run(tmp_path)))}
    assert list(drawn) == [
        *("Loss", "Loss terms, training", "Learning rate", "Gradient norm", "Images per second"),
        "Validation: retrieval",
    ]
    assert drawn["Loss"].summary == "training from 40 to 20; validation from 35 to 35; steps 1 to 400."
    assert "mu" not in drawn["Loss terms, training"].summary


def test_drawings_are_well_formed_take_the_colours_of_the_page_and_share_no_ids():
    name = "_<b> & $x^2$ y"
    drawings = [charts.draw([charts.Series(name, [1, 2], [3.0, 4.0])] * 2, log=True, mark=m) for m in ("c0", "c1")]
    ids = []
    for svg in drawings:
        ids += [e.get("id") for e in ElementTree.fromstring(svg).iter() if e.get("id")]
        assert "var(--series-1)" in svg
        assert "var(--ink)" in svg
        assert "#010" not in svg
        assert "http://" not in svg.replace('xmlns="http://www.w3.org/2000/svg"', "").replace(
            'xmlns:xlink="http://www.w3.org/1999/xlink"', ""
        )
        assert "_&lt;b&gt; &amp; $x^2$ y" in svg
    assert len(ids) == len(set(ids))
    assert charts.draw([charts.Series("a", [1], [0.0])], log=True)  # nothing to take a logarithm of
