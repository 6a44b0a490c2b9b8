"""JSON lines, event files of both writers, resumed runs, console lines."""

import json
import math
import struct
from concurrent.futures import wait

import numpy as np
import pytest

from medvlp_jax import metrics


class Events:
    """Stands in for an event writer and keeps what it is given."""

    def __init__(self, workdir):
        self.workdir, self.calls = workdir, []

    def __getattr__(self, name):
        return lambda *args: self.calls.append((name, *args))


@pytest.fixture
def no_events(monkeypatch):
    monkeypatch.setattr(metrics, "_event_writer", Events)


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_one_json_line_per_call(tmp_path, no_events):
    writer = metrics.MetricWriter(tmp_path)
    writer.scalars(1, {"loss": np.float32(0.5), "steps": 3})
    assert lines(tmp_path) == [{"step": 1, "loss": 0.5, "steps": 3.0}]  # flushed while the run goes on
    writer.scalars(2, {"retrieval/report/R@1": 25.0})
    writer.close()
    assert lines(tmp_path) == metrics.read_metrics(tmp_path)
    assert metrics.read_metrics(tmp_path)[1] == {"step": 2, "retrieval/report/R@1": 25.0}
    assert writer._events.calls[0] == ("scalars", 1, {"loss": 0.5, "steps": 3.0})
    assert writer._events.calls[-1] == ("close",)


def test_numbers_that_are_not_finite_become_null(tmp_path, no_events):
    writer = metrics.MetricWriter(tmp_path)
    writer.scalars(7, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1.0})
    assert lines(tmp_path) == [{"step": 7, "a": None, "b": None, "c": None, "d": 1.0}]
    shown = writer._events.calls[0][2]  # TensorBoard takes them as they are
    assert math.isnan(shown["a"])
    assert shown["b"] == math.inf


def test_resumed_run_drops_later_lines_and_half_lines(tmp_path, no_events):
    text = (
        '{"step": 2, "loss": 3.0}\n{"step": 4, "loss": null}\nnonsense\n[1]\n{"step": 6, "loss": 1.0}\n{"step": 8, "lo'
    )
    (tmp_path / "metrics.jsonl").write_text(text)
    writer = metrics.MetricWriter(tmp_path, resume_step=4)
    writer.scalars(5, {"loss": 2.0})
    writer.close()
    assert lines(tmp_path) == [{"step": 2, "loss": 3.0}, {"step": 4, "loss": None}, {"step": 5, "loss": 2.0}]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_run_that_starts_afresh_drops_every_line(tmp_path, no_events):
    (tmp_path / "metrics.jsonl").write_text('{"step": 2, "loss": 3.0}\n')
    metrics.MetricWriter(tmp_path).close()
    assert metrics.read_metrics(tmp_path) == []


def test_read_metrics_skips_what_is_no_whole_line(tmp_path):
    assert metrics.read_metrics(tmp_path) == []
    content = b'{"step": 1, "a": 2}\n{"step": "x"}\n{"a": 1}\n\xff\xfe\n{"step": 3, "a": null}\n{"step": 4, "a'
    (tmp_path / "metrics.jsonl").write_bytes(content)
    assert metrics.read_metrics(tmp_path) == [{"step": 1, "a": 2}, {"step": 3, "a": None}]


def test_other_processes_write_nothing(tmp_path):
    writer = metrics.MetricWriter(tmp_path / "absent", write=False)
    writer.scalars(1, {"loss": 1.0})
    writer.images(1, {"views": np.zeros((1, 2, 2, 1))})
    writer.hyperparameters({"seed": 0})
    writer.close()
    console = metrics.Console(tmp_path / "absent", write=False)
    console("text")
    console.close()
    assert list(tmp_path.iterdir()) == []


def test_hyperparameters_are_plain(tmp_path, no_events):
    writer = metrics.MetricWriter(tmp_path)
    writer.hyperparameters({"seed": 0, "rate": 0.1, "on": True, "name": "x", "betas": [0.9, 0.999], "none": None})
    plain = {"seed": 0, "rate": 0.1, "on": True, "name": "x", "betas": "[0.9, 0.999]", "none": "None"}
    assert writer._events.calls == [("hyperparameters", plain)]


def read_events(workdir):
    """Names and values of the records in the event files, checked frame by frame."""
    from tensorboardX.proto.event_pb2 import Event

    scalars, others = {}, set()
    files = list(workdir.glob("events.out.tfevents.*"))
    assert files
    for content in (path.read_bytes() for path in files):
        start = 0
        while start < len(content):
            (size,) = struct.unpack("<Q", content[start : start + 8])
            event = Event.FromString(content[start + 12 : start + 12 + size])
            start += size + 16
            for value in event.summary.value:
                tag = value.tag
                if value.WhichOneof("value") == "simple_value":
                    scalars[tag, event.step] = value.simple_value
                elif len(value.tensor.tensor_content) == 4:
                    (scalars[tag, event.step],) = struct.unpack("<f", value.tensor.tensor_content)
                else:
                    others.add(tag)
    return scalars, others


@pytest.mark.parametrize("writer", [metrics._TensorboardXEvents, metrics._CluEvents])
def test_event_files(tmp_path, writer):
    if writer is metrics._CluEvents:
        pytest.importorskip("tensorflow")
        pytest.importorskip("tensorboard")
    events = writer(tmp_path)
    events.hyperparameters({"seed": 3, "rate": 0.1, "name": "demo", "on": True})
    events.scalars(5, {"loss": 1.5, "retrieval/report/R@1": 25.0})
    events.scalars(6, {"loss": math.nan})
    events.images(5, {"views": np.linspace(0, 1, 2 * 4 * 4).reshape(2, 4, 4, 1).astype(np.float32)})
    events.close()
    scalars, others = read_events(tmp_path)
    assert scalars["loss", 5] == 1.5
    assert scalars["retrieval/report/R@1", 5] == 25.0
    assert math.isnan(scalars["loss", 6])
    assert any(tag.startswith("views") for tag in others)
    assert any("hparams" in tag for tag in others)


def test_what_the_event_thread_meets_is_raised_by_the_next_call_or_at_the_end(tmp_path, monkeypatch):
    class Full:
        def write_scalars(self, step, values):
            raise OSError(28, "No space left on device")

        def close(self):
            pass

    monkeypatch.setattr(metrics._CluEvents, "_open", lambda self, workdir: setattr(self, "_writer", Full()))
    events = metrics._CluEvents(tmp_path)
    events.scalars(1, {"loss": 1.0})
    with pytest.raises(OSError, match="No space left"):
        events.close()
    events = metrics._CluEvents(tmp_path)
    events.scalars(1, {"loss": 1.0})
    wait(events._waiting)
    with pytest.raises(OSError, match="No space left"):
        events.scalars(2, {"loss": 1.0})

    def absent(self, workdir):
        raise ImportError("no TensorFlow")

    monkeypatch.setattr(metrics._CluEvents, "_open", absent)
    with pytest.raises(ImportError, match="no TensorFlow"):
        metrics._CluEvents(tmp_path).close()


def test_writer_by_what_is_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "_CluEvents", lambda workdir: "clu")
    monkeypatch.setattr(metrics, "_TensorboardXEvents", lambda workdir: "tensorboardX")
    for there, expected in (
        ({"tensorflow", "tensorboard"}, "clu"),
        ({"tensorflow"}, "tensorboardX"),
        ({"tensorboard"}, "tensorboardX"),
    ):
        monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name, there=there: name in there or None)
        assert metrics._event_writer(tmp_path) == expected


def test_check_finite_names_the_step_and_the_terms():
    metrics.check_finite(1, {"loss": 1.0, "text": -3.0})
    with pytest.raises(metrics.NonFiniteError) as info:
        metrics.check_finite(12, {"loss": math.nan, "text": 0.5, "gradient_norm": math.inf})
    message = str(info.value)
    assert message.startswith("Step 12: loss=nan, gradient_norm=inf is not finite; training stops")
    assert "text" not in message
    assert "optimizer.learning_rate" in message


def test_rates_since_the_last_call():
    progress = metrics.Progress(total_steps=100, batch_size=16, views=2)
    spent = {"step": 3.0, "data_wait": 2.0, "compile": 30.0, "checkpoint": 0.0}
    assert progress.rates(1, spent) == {}  # the first step was the compilation
    spent |= {"step": 7.0, "data_wait": 3.0}
    assert progress.rates(11, spent) == pytest.approx(
        {"steps_per_second": 2.0, "images_per_second": 64.0, "data_wait_share": 0.2}
    )
    spent |= {"data_wait": 7.0, "checkpoint": 6.0}  # saving is no slower step
    assert progress.rates(15, spent) == pytest.approx(
        {"steps_per_second": 1.0, "images_per_second": 32.0, "data_wait_share": 1.0}
    )


def test_line():
    progress = metrics.Progress(total_steps=1400, batch_size=8, views=2)
    assert progress.line(1, {"loss": 9.12345, "text": 0.5}, {}) == "step    1/1400   0% | loss 9.123  text 0.5"
    rates = {"steps_per_second": 10.0, "images_per_second": 829.6, "data_wait_share": 0.014}
    assert (
        progress.line(100, {"loss": 9.0}, rates)
        == "step  100/1400   7% | loss 9 | 830 images/s | data wait 1% | ETA 2:10"
    )
    assert progress.line(1400, {"loss": 1.0}, rates).startswith("step 1400/1400 100% |")
    assert progress.line(1400, {"loss": 1.0}, rates).endswith("ETA 0:00")


def test_examples_of_every_step_once(tmp_path):
    log = metrics.ExampleLog(tmp_path, resume_step=0)
    for step in (1, 2, 3):
        log(step, np.array([step, 7], np.int32))
    log.close()
    with (tmp_path / "examples.jsonl").open("a") as file:
        file.write('{"step": 4, "ind')
    again = metrics.ExampleLog(tmp_path, resume_step=2)
    again(3, np.array([9, 8], np.int32))
    again.close()
    found = [json.loads(line) for line in (tmp_path / "examples.jsonl").read_text().splitlines()]
    assert found == [{"step": 1, "index": [1, 7]}, {"step": 2, "index": [2, 7]}, {"step": 3, "index": [9, 8]}]


def test_clock():
    shown = [metrics.clock(s) for s in (0, 0.4, 59.6, 155, 3599.4, 3599.6, 7384, 100 * 3600)]
    assert shown == ["0:00", "0:00", "1:00", "2:35", "59:59", "1:00:00", "2:03:04", "100:00:00"]


def test_console_prints_and_writes(tmp_path, capsys):
    for text in ("first é", "second"):  # a resumed run appends
        console = metrics.Console(tmp_path)
        console(text)
        console()
        console.close()
    assert (tmp_path / "log.txt").read_text(encoding="utf-8") == "first é\n\nsecond\n\n" == capsys.readouterr().out
