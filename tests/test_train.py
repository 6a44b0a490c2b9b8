"""Whole runs through the command line: finishing, resuming after a kill, stopping, refusing, on one device."""

import functools
import json
import os
import re
import signal
import subprocess
import time

import numpy as np
import pytest
import tiny

from configs import imitate
from medvlp_jax import build, text_tower
from medvlp_jax.evaluate import evaluate
from medvlp_jax.goodput import USES
from medvlp_jax.train import train

pytestmark = pytest.mark.slow
command = functools.partial(tiny.command, **tiny.MUON)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A run of eight steps, and its folder."""
    workdir = tmp_path_factory.mktemp("finished")
    more = {"final_evaluators": tiny.ALL_EVALUATORS, "report": True}
    return tiny.run(command(data, workdir, total_steps=8, **more), frameworks=True), workdir


def test_run_folder_and_scores(finished):
    done, workdir = finished
    for name in ("config.json", "metrics.jsonl", "log.txt", "scores.json", "checkpoints/8"):
        assert (workdir / name).exists(), name
    assert list(workdir.glob("events.out.tfevents.*"))
    assert sorted(tiny.losses(workdir)) == list(range(1, 9))
    assert all(np.isfinite(loss) for loss in tiny.losses(workdir).values())
    scores = json.loads((workdir / "scores.json").read_text())
    assert scores["split"] == "test"
    rows = {row["name"]: row for row in scores["scores"]}
    recall = rows["retrieval/impression/image_to_text_R@10"]
    assert recall["chance"] > 0
    assert 0 <= recall["random_init"] <= 100
    assert recall["interval"][0] <= recall["value"] <= recall["interval"][1]
    assert {name.split("/")[0] for name in rows} >= {
        "loss",
        "retrieval",
        "zero_shot",
        "linear_probe",
        "knn",
        "grounding",
    }
    assert rows["linear_probe/1%/auc/mean"]["raw_pixels"] is not None
    assert (workdir / "scores" / "8.json").exists()
    page = (workdir / "report.html").read_text()
    assert "retrieval" in page
    assert "--config.total_steps=8" in page
    assert f"report      {workdir / 'report.html'}" in done.stdout
    assert (workdir / "probe_subsets.json").exists()
    last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    assert (last["step"], last["goodput/attempts"], last["goodput/steps"], last["goodput/lost"]) == (8, 1, 7, 0)
    for use in ("step", "compile", "checkpoint", "evaluation", "startup"):
        assert last[f"goodput/{use}"] > 0, use
    assert sum(last[f"goodput/{use}"] for use in USES) == pytest.approx(last["seconds"], abs=0.1)
    assert "compiling, with the first step" in page
    assert done.stdout.splitlines()[-1].startswith("goodput     ")
    assert str(workdir) in done.stdout
    assert "images/s" in done.stdout
    assert "ETA" in done.stdout


def test_killed_and_resumed_run_is_bit_identical(data, finished, tmp_path):
    _, whole = finished
    arguments = command(data, tmp_path, total_steps=8, final_evaluators="()")
    with subprocess.Popen(
        arguments, cwd=tiny.REPOSITORY, env=tiny.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        deadline = time.monotonic() + 200
        while not (tmp_path / "checkpoints" / "4").exists() and time.monotonic() < deadline:
            assert process.poll() is None, process.stdout.read().decode()
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    steps = {int(path.name) for path in (tmp_path / "checkpoints").glob("[0-9]*") if path.name.isdigit()}
    assert max(steps) < 8, "the run ended before it could be killed"
    resumed = tiny.run(arguments)
    assert f"resume    step {max(steps)}" in resumed.stdout
    expected, got = tiny.parameters(whole, 8), tiny.parameters(tmp_path, 8)
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)
    assert tiny.losses(tmp_path) == tiny.losses(whole)  # no step missing, none twice
    account = json.loads((tmp_path / "goodput.json").read_text())
    assert (account["attempts"], account["step"], account["done"]) == (2, 8, True)
    assert account["seconds"]["down"] > 0


def test_sigterm_saves_and_exits_cleanly(data, tmp_path):
    arguments = command(data, tmp_path, total_steps=100000, checkpoint_every_steps=0)
    with subprocess.Popen(
        arguments, cwd=tiny.REPOSITORY, env=tiny.environment(), stdout=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout:
            if re.match(r"step +5/", line):
                process.terminate()
                break
            assert not re.match(r"step +50/", line), "the console no longer prints every step"
        rest = process.stdout.read()
        assert process.wait(timeout=60) == 75  # to be started again
    assert "stopped   by SIGTERM after step" in rest
    saved = [int(path.name) for path in (tmp_path / "checkpoints").glob("[0-9]*")]
    assert len(saved) == 1
    assert saved[0] >= 5


def test_full_disk_is_named_and_the_run_goes_on_when_there_is_space(data, small_disk):
    workdir = small_disk / "run"
    arguments = command(data, workdir, total_steps=16, keep_checkpoints=9, final_evaluators="()")
    done = tiny.run(arguments, check=False)
    assert done.returncode == 2, done.stderr
    assert "no space left on the device. Free space, lower keep_checkpoints" in done.stderr
    assert "the same command resumes" in done.stderr
    assert any(line.startswith("CheckpointError: ") for line in done.stderr.splitlines())  # Orbax logs its own as well
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    resumed = tiny.run(arguments)
    assert "resume    step " in resumed.stdout
    assert sorted(tiny.losses(workdir)) == list(range(1, 17))
    assert json.loads((workdir / "goodput.json").read_text())["attempts"] == 2


def test_evaluation_alone_repeats_the_scores_and_takes_several_checkpoints(data, finished):
    _, workdir = finished
    before = json.loads((workdir / "scores.json").read_text())
    more = {"final_evaluators": tiny.ALL_EVALUATORS, "total_steps": 8}
    done = tiny.run(command(data, workdir, "--mode", "eval", "--checkpoints", "6,8", **more))
    assert [line.split("step ")[1] for line in done.stdout.splitlines() if line.startswith("Scores on")] == ["6", "8"]
    assert {path.name for path in (workdir / "scores").iterdir()} >= {"6.json", "8.json"}
    assert json.loads((workdir / "scores.json").read_text()) == before
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 7.*8"):
        evaluate(tiny.make_config(data, total_steps=8, **tiny.MUON), workdir, checkpoint_steps=(7,))
    refuse(command(data, workdir, "--mode", "eval", "--checkpoints", "last", total_steps=8), "must be 'all' or")


def test_patients_of_training_are_refused_as_a_test_set(data, finished):
    _, workdir = finished
    overlap = {"data.test_split": "train[:6]", "total_steps": 8}
    with pytest.raises(ValueError, match=r"are also in the training split.*allow_patient"):
        evaluate(tiny.make_config(data, **overlap, **tiny.MUON), workdir)
    allowed = {**overlap, "evaluation.allow_patient_overlap": True}
    tiny.run(command(data, workdir, "--mode", "eval", **allowed))
    scores = json.loads((workdir / "scores.json").read_text())
    assert scores["patients_shared_with_training"] == scores["patients"] > 0
    assert scores["step"] == 8  # the newest


def refuse(arguments, *words):
    done = tiny.run(arguments, check=False)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr, done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


def test_other_config_in_the_same_folder(data, finished):
    _, workdir = finished
    other = command(data, workdir, total_steps=8, **{"optimizer.learning_rate": 0.5})
    refuse(other, "belongs to another config", "optimizer.learning_rate", "0.5")


def test_evaluation_of_an_empty_folder(data, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        evaluate(tiny.make_config(data), tmp_path / "none")


def test_data_that_is_not_prepared(tmp_path):
    full = imitate.get_config().unlock()
    full.data.dir = str(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"(?s)python -m medvlp_jax.prepare mimic_cxr.*configs/imitate.py:demo"):
        train(full.lock(), tmp_path / "run")


def test_unknown_config_words(data, tmp_path):
    arguments = command(data, tmp_path)
    done = tiny.run([*arguments, "--config.totl_steps=3"], check=False)
    assert done.returncode != 0
    assert "totl_steps" in done.stderr
    done = tiny.run([a.replace(":demo", ":dmeo") for a in arguments], check=False)
    assert done.returncode != 0
    assert "Did you mean 'demo'?" in done.stderr


def test_loss_that_explodes_names_step_and_terms(data, tmp_path):
    arguments = command(data, tmp_path, total_steps=60, **{"optimizer.learning_rate": 1e30})
    refuse(arguments, "NonFiniteError", "Step ", "is not finite", "learning_rate")


def test_a_run_with_parts_and_a_ring(data, tmp_path):
    more = {"micro_batches": 2, "pairs.schedule": "ring", "total_steps": 2, "final_evaluators": "()"}
    done = tiny.run(command(data, tmp_path / "run", **more), devices=2)
    assert "pairs     ring, as configured" in done.stdout
    assert sorted(tiny.losses(tmp_path / "run")) == [1, 2]
    more["pairs.schedule"] = "rings"
    with pytest.raises(ValueError, match=r"Unknown schedule 'rings'\. Choose one of dense, chunked, ring"):
        train(tiny.make_config(data, **more), tmp_path / "wrong")


def test_a_text_cache_grows_when_other_splits_are_asked_for(data, tmp_path):
    """A cache that was made for a part of a split does not pass for one of all of it."""
    config = tiny.make_config(data).unlock()
    config.text.max_length = 60  # a key of its own
    tower, said = text_tower.of_config(config), []
    sizes = []
    for split in ("train[:2]", "train", "train"):
        config.data.train_split = split
        sizes.append(len(build._text_cache(config, tower, build.open_source(config, split), said.append)))
    assert sizes[0] < sizes[1] == sizes[2]
    assert sum("encoding every distinct section" in line for line in said) == 2
