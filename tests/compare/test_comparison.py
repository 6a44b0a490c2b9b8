"""Methods at equal compute: what is asked, what a budget gives, what is run, kept, refused, and shown."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image
from scipy.stats import t

from medvlp_jax import config as configs
from medvlp_jax.compare import budget as budgets
from medvlp_jax.compare import runs, table
from medvlp_jax.compare.__main__ import main
from medvlp_jax.compare.entries import load_config, read_entries, split_specs
from medvlp_jax.goodput import USES

COST = {"flops": 2e9, "compiler_flops": 2e9, "shape_flops": 2.5e9, "model_flops": 2.2e9, "memory_bytes": 50 * 2**20}
AUC = {0: 0.70, 1: 0.72, 2: 0.77}  # by seed


@pytest.fixture(autouse=True)
def repository(monkeypatch):
    monkeypatch.chdir(tiny.REPOSITORY)


# ---- what is asked -----------------------------------------------------------


def test_commas_part_configs_and_arguments():
    assert split_specs("configs/imitate.py,configs/clip.py:preset=fixed,m_flag:demo,preset=released,convirt") == [
        "configs/imitate.py",
        "configs/clip.py:preset=fixed",
        "configs/m_flag.py:demo,preset=released",
        "configs/convirt.py",
    ]


def test_configs_are_read_as_training_reads_them():
    flags = ["--config.batch_size=16", "--config.final_evaluators=('retrieval',)", "--config.optimizer.warmup_steps=3"]
    entries = read_entries("imitate,imitate:preset=released,clip:preset=fixed", flags)
    assert [entry.name for entry in entries] == ["imitate", "imitate-released", "clip"]
    assert [entry.spec for entry in entries][1:] == [
        "configs/imitate.py:demo,preset=released",
        "configs/clip.py:demo,preset=fixed",
    ]
    for entry in entries:
        assert entry.config.batch_size == 16
        assert entry.config.final_evaluators == ("retrieval",)
        assert entry.config.data.name == "cxr_phantom"
    assert read_entries("imitate:data=mimic_cxr")[0].config.batch_size == 1024  # the full recipe, when told so


@pytest.mark.parametrize(
    ("text", "flags", "said"),
    [
        ("imitate,clipp", [], "'clipp', which is no config. Known: clip, convirt, "),
        ("imitate:demo,clipp", [], "Unknown config argument 'clipp'"),
        ("elsewhere/gloria.py", [], "'elsewhere/gloria.py', which is not there. Known: "),
        (",", [], "--configs is empty"),
        ("imitate,configs/imitate.py:demo", [], "imitate more than once"),
        ("imitate,clip", ["--config.model.read.tokens=3"], "configs/clip.py:demo has no field model.read.tokens"),
        ("imitate", ["--config.batch_sice=3"], "Did you mean batch_size?"),
        ("imitate", ["--config.batch_size=many"], "batch_size=many"),
        ("imitate", ["--config.batch_size"], "write --config.batch_size=VALUE"),
        ("imitate", ["--config.seed=3"], "sets seed itself, by --seeds"),
        ("imitate", ["--config.total_steps=3"], "sets total_steps itself, by --budget"),
        ("imitate,clip:data=vindr_cxr", [], "data.name: imitate has 'cxr_phantom', clip has 'vindr_cxr'"),
    ],
)
def test_what_cannot_be_compared_is_refused(text, flags, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        read_entries(text, flags)


def test_other_settings_of_evaluation_are_named(tmp_path):
    other = tmp_path / "other.py"
    other.write_text(
        "from configs import clip\n\ndef get_config(arg=None):\n    config = clip.get_config(arg)\n"
        "    with config.unlocked():\n        config.evaluation.prompts = 'plain'\n        config.method = 'other'\n"
        "    return config\n"
    )
    with pytest.raises(ValueError, match=r"evaluation\.prompts: clip has 'ensemble', other has 'plain'"):
        read_entries(f"clip,{other}")


# ---- the budget -----------------------------------------------------------


def test_budgets_and_the_steps_that_they_hold():
    steps, seconds, flops = (budgets.parse_budget(text) for text in ("1000steps", "600s", "2e15flops"))
    assert budgets.steps_within(steps, flops=3e9, seconds=None) == 1000
    assert budgets.steps_within(seconds, flops=3e9, seconds=0.25) == 2400
    assert budgets.steps_within(seconds, flops=3e9, seconds=0.7) == 857
    assert budgets.steps_within(flops, flops=3e9, seconds=None) == 666_666
    assert [str(budget) for budget in (steps, seconds, flops)] == ["1000steps", "600s", "2e+15flops"]
    assert budgets.parse_budget(str(flops)) == flops


@pytest.mark.parametrize("text", ["600", "s", "0s", "-5steps", "1.5steps", "10 minutes", "1e3e4s"])
def test_what_is_no_budget_is_refused_with_the_forms(text):
    with pytest.raises(ValueError, match="2e15flops"):
        budgets.parse_budget(text)


def test_a_budget_shorter_than_the_warm_up_says_what_it_takes():
    budget, config = budgets.parse_budget("2e11flops"), load_config("configs/imitate.py:demo")
    with pytest.raises(ValueError, match=r"gives imitate 40 steps, .*warmup_steps=50 .*Give 2.55e\+11flops or more"):
        budgets.check_steps("imitate", budget, config, 40)
    budgets.check_steps("imitate", budget, config, 51)


# ---- processes -----------------------------------------------------------


def test_a_process_is_shown_and_its_memory_and_reason_are_kept():
    said = []
    code = "import sys; x = b'x' * 200_000_000; print('step 1/2 | loss 3', flush=True); print('other'); sys.exit({})"
    with runs.Processes(said.append) as processes:
        done = processes(
            ["python", "-c", f"import time; {code.format(0).replace('print(', 'time.sleep(0.8); print(', 1)}"], "a"
        )
        failed = processes(["python", "-c", "print('x'); raise KeyError('of\\nmine')"], "b")
        killed = processes(["python", "-c", "import os; os.kill(os.getpid(), 9)"], "c")
    assert (done.code, done.reason, done.output) == (0, "", "step 1/2 | loss 3\nother\n")
    assert "          [a] step 1/2 | loss 3" in said
    assert not any("other" in line and "[a]" in line for line in said)
    assert 0.2e9 < done.peak_bytes < 0.3e9 or not sys.platform.startswith("linux")
    assert (failed.code, failed.reason) == (1, "KeyError: 'of\\nmine'")
    assert killed.reason == "killed by SIGKILL (out of memory?)"
    assert runs.reason(2, ["noise", "ValueError: The folder belongs:", "  seed: 1", ""]) == (
        "ValueError: The folder belongs: seed: 1"
    )


def test_a_signal_goes_on_to_the_process_and_nothing_more_is_started():
    child = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(75)); "
    child += "print('step 1', flush=True); time.sleep(60)"

    def say(line):
        if "[a] step" in line:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with runs.Processes(say) as processes:
        outcome = processes(["python", "-c", child], "a")
        assert processes.stopped
        assert (outcome.code, outcome.reason.split(",")[0]) == (75, "stopped by a signal")
        assert processes(["python", "-c", "print('step')"], "b").reason == "not started"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_folder_is_locked_until_the_last_run_in_it_has_ended(tmp_path):
    with runs.alone(tmp_path / "c") as lock:
        with pytest.raises(ValueError, match="is in use"), runs.alone(tmp_path / "c"):
            pass
        left = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(lock,))
    with pytest.raises(ValueError, match="a run that a killed one left behind"), runs.alone(tmp_path / "c"):
        pass
    left.communicate(b"\n")
    with runs.alone(tmp_path / "c"):
        pass


# ---- whole comparisons, with runs that are made up -----------------------------------------------------------


class MadeUp(runs.Processes):
    """Writes what a process would leave. commands: all that were run. fails: label -> reason. ms: of a step."""

    commands: list = []  # noqa: RUF012
    fails: dict = {}  # noqa: RUF012
    ms: dict = {"imitate": 200.0, "clip": 100.0}  # noqa: RUF012

    def __call__(self, command, label):
        self.commands.append(command)
        if label in self.fails:
            return runs.Outcome(2, self.fails[label], "", None)
        spec, flags = command[4], [word for word in command if word.startswith("--config.")]
        config = load_config(spec, flags)
        if command[2].endswith("measure"):
            cost = COST if config.method == "imitate" else COST | {"flops": 1e9}
            return runs.Outcome(0, "", f"said before\n{json.dumps(cost)}\n", None)
        write_run(Path(command[6]), config, self.ms[config.method])
        return runs.Outcome(0, "", "", 3 * 2**30)


def write_run(folder, config, ms):
    """A run folder as training leaves it, its scores made up by seed."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(configs.flat(config)))
    steps = config.total_steps
    seconds = dict.fromkeys(USES, 0.0) | {"step": (steps - 1) * ms / 1e3, "compile": 5.0, "down": 100.0}
    account = {f"goodput/{use}": value for use, value in seconds.items()} | {"goodput/steps": steps - 1}
    rates = {"steps_per_second": 1e3 / ms, "images_per_second": 64e3 / ms}
    lines = [{"step": step, "loss": 1.0, "seconds": 1.0, **rates, **account} for step in (5, 10, steps)]
    lines[0]["steps_per_second"] = 0.5  # the first interval is left out
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "log.txt").write_text("model     339,144 trainable parameters, float32 compute\n")
    if config.final_evaluators:
        auc = AUC[config.seed] - 0.1 * (config.method == "clip")
        rows = [row("zero_shot/auc/mean", auc, 0.5), row("retrieval/report/image_to_text_R@10", 100 * (auc - 0.5), 2.0)]
        scores = {"data": "cxr_phantom", "split": "test", "split_hash": "9f3a", "examples": 604, "patients": 412}
        (folder / "scores.json").write_text(json.dumps(scores | {"step": steps, "public": True, "scores": rows}))


def row(name, value, chance):
    empty = {"interval": [value - 0.01, value + 0.01], "count": 604, "random_init": chance + 0.01}
    return {"protocol": name.partition("/")[0], "name": name, "value": value, "chance": chance, **empty}


@pytest.fixture
def made_up(monkeypatch):
    monkeypatch.setattr(runs, "Processes", MadeUp)
    monkeypatch.setattr(MadeUp, "commands", [])
    monkeypatch.setattr(MadeUp, "ms", dict(MadeUp.ms))
    return MadeUp


def compare(out, *more, configs="imitate,clip", budget="100steps", seeds=3):
    return main(["--configs", configs, "--budget", budget, "--out", str(out), "--seeds", str(seeds), *more])


def read(out):
    return json.loads((out / "table.json").read_text())


def test_table_of_three_seeds(made_up, tmp_path, capsys):
    assert compare(tmp_path / "c") == 0
    content, text = read(tmp_path / "c"), (tmp_path / "c" / "table.md").read_text()
    found = content["methods"]["imitate"]
    auc = found["scores"]["zero_shot/auc/mean"]
    values = list(AUC.values())
    half = t.ppf(0.975, 2) * np.std(values, ddof=1) / np.sqrt(3)
    assert auc["mean"] == pytest.approx(np.mean(values))
    np.testing.assert_allclose(auc["interval"], [np.mean(values) - half, np.mean(values) + half])
    assert (auc["values"], auc["chance"]) == ({"0": 0.7, "1": 0.72, "2": 0.77}, 0.5)
    assert auc["random_init"] == pytest.approx(0.51)
    assert found["steps"] == 100
    assert found["training_flops"] == 100 * 2e9
    assert found["training_seconds"]["1"] == pytest.approx(99 * 0.2)
    assert found["wall_seconds"]["1"] == pytest.approx(99 * 0.2 + 5)  # without the time between attempts
    assert found["ms_per_step"]["0"] == pytest.approx(200)
    assert found["peak_bytes"] == {"0": 3 * 2**30, "1": 3 * 2**30, "2": 3 * 2**30}
    cells = [cell.strip() for cell in text.splitlines()[8].split("|")[1:-1]]
    assert cells == ["imitate", "3", f"0.730 ± {half:.3f}", "0.510", f"23.0 ± {100 * half:.1f}", "2.0", "0:20", "0.2"]
    assert "| chance |  | 0.500 |  | 2.0 |" in text
    assert "phantoms, rendered images, not patients" in text
    assert "equal steps: 100 steps each" in text
    assert content["clearly_best"] == {}  # 0.73 and 0.63, each ± 0.09
    with Image.open(tmp_path / "c" / "comparison.png") as picture:
        assert picture.width > 1000
    out = capsys.readouterr().out
    assert "run       6/6 clip-2" in out
    assert "| imitate | 3 |" in out


def test_the_budget_sets_the_length_of_the_schedule(made_up, tmp_path):
    assert compare(tmp_path / "time", budget="60s", seeds=1) == 0
    assert {n: m["steps"] for n, m in read(tmp_path / "time")["methods"].items()} == {"imitate": 300, "clip": 600}
    calibrations = [c for c in made_up.commands if any("calibration" in word for word in c)]
    assert len(calibrations) == 2
    assert {"--config.total_steps=40", "--config.optimizer.warmup_steps=0"} <= set(calibrations[0])
    assert not list((tmp_path / "time").glob("calibration*"))
    assert configs.load(tmp_path / "time" / "clip-0").total_steps == 600
    assert compare(tmp_path / "flops", budget="2e11flops", seeds=1) == 0
    assert {n: m["steps"] for n, m in read(tmp_path / "flops")["methods"].items()} == {"imitate": 100, "clip": 200}


def test_the_same_command_reuses_goes_on_and_grows(made_up, tmp_path, capsys):
    assert compare(tmp_path / "c", configs="imitate", budget="60s", seeds=1) == 0
    del made_up.commands[:]
    made_up.ms["imitate"] = 1000.0  # steps stay those of the first calibration
    assert compare(tmp_path / "c", budget="60s", seeds=2) == 0
    assert "reused    1 finished run(s)" in capsys.readouterr().out
    trained = [command[6] for command in made_up.commands if "medvlp_jax.main" in command]
    assert [Path(path).name for path in trained] == ["calibration-clip", "clip-0", "imitate-1", "clip-1"]
    assert {m["steps"] for n, m in read(tmp_path / "c")["methods"].items() if n == "imitate"} == {300}
    assert read(tmp_path / "c")["methods"]["imitate"]["seeds"] == [0, 1]
    del made_up.commands[:]
    scores = tmp_path / "c" / "imitate-1" / "scores.json"
    scores.write_text(json.dumps(json.loads(scores.read_text()) | {"step": 200}))  # as if cut off before the end
    assert compare(tmp_path / "c", budget="60s", seeds=2) == 0
    assert [Path(command[6]).name for command in made_up.commands] == ["imitate-1"]


def test_failed_runs_stand_in_the_table_and_stop_no_others(made_up, tmp_path, monkeypatch):
    monkeypatch.setattr(
        made_up, "fails", {"clip-1": "NonFiniteError: Step 3: loss=nan", "siglip": "ValueError: no tower"}
    )
    assert compare(tmp_path / "c", configs="imitate,clip,siglip", seeds=2) == 1
    content, text = read(tmp_path / "c"), (tmp_path / "c" / "table.md").read_text()
    reasons = {row["run"]: row["reason"] for row in content["unfinished"]}
    assert reasons == {
        "clip-1": "NonFiniteError: Step 3: loss=nan",
        "siglip-0": "not started: ValueError: no tower",
        "siglip-1": "not started: ValueError: no tower",
    }
    assert content["methods"]["clip"]["seeds"] == [0]
    assert content["methods"]["clip"]["scores"]["zero_shot/auc/mean"]["interval"] is None
    assert content["methods"]["imitate"]["seeds"] == [0, 1]
    assert "- `clip-1`: NonFiniteError: Step 3: loss=nan" in text
    assert f"--workdir {tmp_path / 'c' / 'clip-1'}" in text
    monkeypatch.setattr(made_up, "fails", {})
    made_up.ms["siglip"] = 50.0
    assert compare(tmp_path / "c", configs="imitate,clip,siglip", seeds=2) == 0  # tried again
    assert read(tmp_path / "c")["unfinished"] == []


def test_dry_run_prints_what_is_still_to_be_run_and_writes_nothing(made_up, tmp_path, capsys):
    assert compare(tmp_path / "c", "--dry_run", "--config.batch_size=16", budget="60s", seeds=1) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in lines[:6]] == [
        f"medvlp_jax.{m}" for m in ("compare.measure", "main") * 2 + ("main",) * 2
    ]
    assert "--config.total_steps=STEPS --config.seed=0 --config.batch_size=16" in lines[4]
    assert lines[6].startswith("# STEPS")
    assert not (tmp_path / "c").exists()
    assert made_up.commands == []


def test_bad_input_is_refused_before_anything_is_trained(made_up, tmp_path, capsys):
    def refused(said, *more, **asked):
        assert compare(tmp_path / "c", *more, **asked) == 2
        assert said in capsys.readouterr().err

    refused("--budget='10'", budget="10")
    refused("is too small: it gives imitate 50 steps", budget="50steps")
    refused("'nothing', which is no config", configs="nothing")
    assert not (tmp_path / "c").exists()
    refused("is too small: it gives imitate 5 steps", budget="1.1s", seeds=1)
    assert not [command for command in made_up.commands if "medvlp_jax.main" in command and "imitate-0" in str(command)]
    assert compare(tmp_path / "c", budget="30s", seeds=1) == 0  # so another may be tried until one is planned by
    refused("with --budget 30s, you ask for 60s. Name another --out", budget="60s")
    refused("batch_size: there 32, now 16", "--config.batch_size=16", budget="30s")
    refused(
        "data.name: imitate-small has 'vindr_cxr', clip has 'cxr_phantom'",
        configs="imitate:small,data=vindr_cxr",
        budget="30s",
    )
    with runs.alone(tmp_path / "c"):
        refused("is in use", budget="30s")
    (tmp_path / "c" / "comparison.json").write_text("{}")
    refused("is damaged")
    (tmp_path / "c" / "comparison.json").unlink()
    (tmp_path / "c" / "own.txt").write_text("")
    refused("holds something else than a comparison")
    for more in (["--seeds", "0"], ["--calibration_steps", "3"], ["--epochs=3"], ["stray"]):
        with pytest.raises(SystemExit):
            main(["--configs", "imitate", "--budget", "60s", "--out", str(tmp_path / "d"), *more])


def test_json_goes_to_stdout_alone(made_up, tmp_path, capsys):
    assert compare(tmp_path / "c", "--json", seeds=1) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == read(tmp_path / "c")
    assert "run       1/2 imitate-0" in captured.err
    text = (tmp_path / "c" / "table.md").read_text()
    assert "Fewer than three seeds" in text
    assert "| imitate | 1 | 0.700 | 0.510 |" in text


def test_only_what_is_apart_is_marked_as_best(made_up, tmp_path, monkeypatch):
    monkeypatch.setitem(AUC, 1, 0.705)
    monkeypatch.setitem(AUC, 2, 0.71)
    assert compare(tmp_path / "c") == 0
    assert read(tmp_path / "c")["clearly_best"] == dict.fromkeys(table.MAIN, "imitate")
    assert "0.705 ± 0.012 ▲" in (tmp_path / "c" / "table.md").read_text()
    scores = tmp_path / "c" / "clip-2" / "scores.json"
    scores.write_text(scores.read_text().replace("9f3a", "0000"))  # another list of records
    assert compare(tmp_path / "c") == 0
    assert read(tmp_path / "c")["clearly_best"] == {}
    assert "different lists of records" in (tmp_path / "c" / "table.md").read_text()


# ---- a whole comparison -----------------------------------------------------------


@pytest.mark.slow
def test_two_methods_are_trained_reused_and_a_failing_run_is_named(tmp_path):
    data, out = tiny.make_data(tmp_path / "data"), tmp_path / "c"
    fields = tiny.overrides(data, final_evaluators="('retrieval',)", **{"optimizer.schedule": "cosine"}, **tiny.ADAMW)
    del fields["total_steps"]
    asked = [sys.executable, "-m", "medvlp_jax.compare", "--configs", "imitate,m_flag", "--budget", "3steps"]
    asked += ["--out", str(out), *(f"--config.{name}={value}" for name, value in fields.items())]
    first = tiny.run([*asked, "--seeds", "1"])
    content, score = read(out), "retrieval/report/image_to_text_R@10"
    for name, method in content["methods"].items():
        scores = json.loads((out / f"{name}-0" / "scores.json").read_text())
        own = {row["name"]: row for row in scores["scores"]}[score]
        assert scores["step"] == 3
        assert method["scores"][score]["mean"] == own["value"]
        assert method["scores"][score]["random_init"] == own["random_init"]
        assert method["cost"]["compiler_flops"] > 0
        assert method["cost"]["shape_flops"] == pytest.approx(method["cost"]["compiler_flops"], rel=0.6)
        assert method["peak_bytes"]["0"] > 50e6 or not sys.platform.startswith("linux")
        assert method["training_seconds"]["0"] > 0
    assert re.search(r"\[imitate-0\] step 3/3 100% \| ", first.stdout)
    last = (out / "imitate-0" / "metrics.jsonl").read_text().splitlines()
    rates = [json.loads(line)["learning_rate"] for line in last if "learning_rate" in line]
    assert rates[-1] < rates[1]  # the cosine is as long as the budget
    kept = (out / "m_flag-0" / "scores.json").stat().st_mtime_ns
    (out / "m_flag-1" / "checkpoints" / "3").mkdir(parents=True)
    (out / "m_flag-1" / "config.json").write_text('{"method": "another"}')
    second = tiny.run([*asked, "--seeds", "2", "--configs", "m_flag"], check=False)
    assert second.returncode == 1, second.stderr
    assert "reused    1 finished run(s)" in second.stdout
    assert (out / "m_flag-0" / "scores.json").stat().st_mtime_ns == kept
    content = read(out)
    assert list(content["methods"]) == ["m_flag"]
    assert content["methods"]["m_flag"]["seeds"] == [0]
    (failed,) = content["unfinished"]
    assert failed["run"] == "m_flag-1"
    assert "belongs to another config" in failed["reason"]
    assert (out / "comparison.png").read_bytes().startswith(b"\x89PNG")
