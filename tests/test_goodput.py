"""The account of a run's time: uses, work lost in a crash, attempts, files that are damaged."""

import contextlib
import json
import time

import pytest

from medvlp_jax import goodput
from medvlp_jax.goodput import Goodput
from medvlp_jax.metrics import spent_line


@pytest.fixture
def now(monkeypatch):
    """Both clocks, moved by hand."""
    clock = [1000.0]
    monkeypatch.setattr(goodput.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(goodput.time, "time", lambda: 5e8 + clock[0])
    return clock


def work(spent, now, steps, *, seconds=2.0, wait=0.5):
    """Steps as the loop accounts for them."""
    for _ in range(steps):
        with spent.spend("data_wait"):
            now[0] += wait
        now[0] += seconds
        spent.stepped(spent.step + 1)


def shown(spent):
    return {use: seconds for use, seconds in spent.seconds().items() if seconds}


def test_uses_within_uses(tmp_path, now):
    with Goodput(tmp_path, started=5e8 + now[0] - 3) as spent:
        now[0] += 4
        with spent.spend("restore"):
            now[0] += 1
        spent.turn("step")
        with spent.spend("compile"):
            now[0] += 20
        spent.stepped(1, timed=False)
        work(spent, now, 2)
        with contextlib.suppress(RuntimeError), spent.spend("evaluation"):
            now[0] += 7
            raise RuntimeError
        now[0] += 1
    expected = {"startup": 7, "restore": 1, "compile": 20, "step": 5, "data_wait": 1, "evaluation": 7}
    assert shown(spent) == expected
    assert (spent.step, spent.steps, spent.attempts) == (3, 2, 1)
    assert spent.scalars()["goodput/share"] == pytest.approx(5 / 41)
    stored = json.loads((tmp_path / "goodput.json").read_text())
    assert {use: seconds for use, seconds in stored["seconds"].items() if seconds} == expected


def killed(tmp_path, now, resume, saved, steps):
    """An attempt that computes `steps`, is killed, and is started again 10 s after its last sign of life."""
    spent = Goodput(tmp_path)
    spent.resume(resume, saved)
    spent.turn("step")
    work(spent, now, steps)
    spent._write()  # the last beat
    now[0] += 10
    return spent


def test_work_behind_the_last_checkpoint_is_lost_whenever_it_was_computed(tmp_path, now):
    first = Goodput(tmp_path)
    first.turn("step")
    work(first, now, 4)
    saved = first.at_save()
    assert saved == {"step": 8.0, "data_wait": 2.0, "steps": 4}
    work(first, now, 3)
    first._write()
    now[0] += 10
    killed(tmp_path, now, 4, saved, 2)  # loses the three, computes two of them again
    last = Goodput(tmp_path)
    last.resume(4, saved)
    assert shown(last) == {"step": 8.0, "data_wait": 2.0, "lost": 12.5, "down": 20.0}
    assert (last.attempts, last.step, last.steps, last.lost_steps) == (3, 4, 4, 5)
    assert last.clock() == pytest.approx(22.5)
    line = spent_line(last.scalars())
    assert line == (
        "19% of 0:42 in 3 attempt(s) (5 steps lost): steps that stayed 0:08, waiting for data 0:02, "
        "steps lost and computed again 0:12, between attempts 0:20"
    )


def test_an_older_checkpoint_or_none_loses_more(tmp_path, now):
    killed(tmp_path, now, 0, {}, 4)
    again = Goodput(tmp_path)
    again.resume(0, {})
    assert shown(again) == {"lost": 10.0, "down": 10.0}
    assert (again.lost_steps, again.steps, again.scalars()["goodput/share"]) == (4, 0, 0.0)


def test_time_behind_the_end_is_not_down_time(tmp_path, now):
    with Goodput(tmp_path) as spent:
        spent.turn("step")
        work(spent, now, 1)
        saved = spent.at_save()
        spent.done()
    now[0] += 10_000
    longer = Goodput(tmp_path)
    longer.resume(1, saved)
    assert shown(longer) == {"step": 2.0, "data_wait": 0.5}
    with longer:
        now[0] += 1
    now[0] += 10
    assert shown(Goodput(tmp_path))["down"] == 10.0  # prolonged, and then killed


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"seconds": 3}', '{"seconds": {"step": "x"}}', "null"])
def test_a_damaged_file_begins_a_new_account(tmp_path, now, content):
    (tmp_path / "goodput.json").write_text(content)
    with Goodput(tmp_path) as spent:
        now[0] += 2
    assert (spent.attempts, shown(spent)) == (1, {"startup": 2.0})
    assert json.loads((tmp_path / "goodput.json").read_text())["attempts"] == 1


def test_other_processes_write_nothing_and_a_full_disk_ends_nothing(tmp_path, now):
    with Goodput(tmp_path, write=False):
        pass
    assert list(tmp_path.iterdir()) == []
    with Goodput(tmp_path / "gone"):
        pass


def test_the_account_is_written_while_the_main_thread_is_busy(tmp_path, monkeypatch):
    monkeypatch.setattr(goodput, "BEAT_SECONDS", 0.02)
    with Goodput(tmp_path) as spent:
        spent.turn("step")
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            if json.loads((tmp_path / "goodput.json").read_text())["seconds"]["step"] > 0.05:
                break
            time.sleep(0.01)
        else:
            pytest.fail("no beat")
