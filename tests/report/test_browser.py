"""The pages in a real browser: no console messages, no horizontal scrolling on a phone, every picture decodes."""

import json
import re
import shutil
import subprocess

import fabricated
import pytest
import test_stats

from medvlp_jax.data import statistics
from medvlp_jax.report import data_page, page
from medvlp_jax.report import gallery as galleries

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--allow-file-access-from-files"),
    *("--enable-logging=stderr", "--v=0", "--host-resolver-rules=MAP * ~NOTFOUND"),
)
PHONE = 360
LONG = "an_extraordinarily_long_name_without_any_blank_" * 4
# A frame as narrow as a phone: windows cannot be made that small.
FRAME = """<!doctype html><body><iframe src="{page}" style="width:{width}px;height:900px;border:0"></iframe>
<script>onload = () => {{
  const inside = document.querySelector("iframe").contentDocument;
  for (const part of inside.querySelectorAll("details")) part.open = true;
  const root = inside.documentElement, pictures = [...inside.images];
  document.title = JSON.stringify({{
    scroll: root.scrollWidth, client: root.clientWidth,
    broken: pictures.filter(picture => !picture.naturalWidth).length, pictures: pictures.length,
    requests: inside.defaultView.performance.getEntriesByType("resource").map(request => request.name)
      .filter(name => !name.startsWith("data:")).length,
  }});
}}</script>"""

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium here (apt-get install chromium)")


@pytest.fixture
def opened(tmp_path):
    """Opens a page in a frame of a phone's width; returns measurements and console messages."""

    def opened(path):
        frame = tmp_path / "frame.html"
        frame.write_text(FRAME.format(page=path.as_uri(), width=PHONE))
        arguments = [BROWSER, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", frame.as_uri()]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=True)
        measured = json.loads(re.search(r"<title>(.*?)</title>", done.stdout)[1])
        return measured, [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    return opened


def jpeg():
    import numpy as np

    return galleries.jpeg(np.zeros((64, 64), np.uint8))


def test_a_report_on_a_phone(tmp_path, monkeypatch, opened):
    monkeypatch.setattr(galleries, "_key", lambda workdir, step: f"{galleries.VERSION}:{step}:")
    card = fabricated.card(LONG, picture=jpeg())
    card["maps"][0]["picture"] = jpeg()
    findings = ("Enlarged Cardiomediastinum", "Support Devices")
    card["zero_shot"] = [{"finding": f, "score": 0.512, "percentile": 100.0, "state": -1} for f in findings]
    rows = [*fabricated.SCORES, fabricated.score(f"retrieval/{LONG}/x_R@10", 12.0, [11.0, 13.0], chance=1.0)]
    folder = fabricated.make_run(
        tmp_path / "run",
        gallery=fabricated.gallery([card] * 3),
        scores=fabricated.scores(rows, protocols={"retrieval": LONG}),
        config={LONG: LONG, "text.weights": LONG},
        log=f"command   python {LONG}\n{fabricated.LOG}",
    )
    measured, console = opened(page.write_report([folder]))
    assert console == []
    assert measured["scroll"] == measured["client"] <= PHONE
    assert (measured["broken"], measured["pictures"], measured["requests"]) == (0, 6, 0)


def test_a_comparison_on_a_phone(tmp_path, opened):
    folders = [fabricated.make_run(tmp_path / f"{LONG[:80]}{i}", config={"seed": i}) for i in range(5)]
    measured, console = opened(page.write_report(folders, tmp_path / "comparison.html", pictures=False))
    assert console == []
    assert measured["scroll"] == measured["client"] <= PHONE
    assert measured["requests"] == 0


def test_a_data_set_on_a_phone(tmp_path, opened):
    """With every table there is: labels in long words of the set, ages, sexes, three splits, samples."""
    records = []
    for number in range(12):
        own = {"name": [LONG, "Hernia"], "state": [1, 0]}
        people = {"age": 90 - 7 * number, "sex": "FM"[number % 2], "own_labels": own, "public": True}
        records.append(
            test_stats.record(number, findings=f"{LONG} seen.", labels={"Edema": 1, "Fracture": 0}, **people)
        )
    splits = {split: statistics.describe(records, len) for split in ("train", "validation", LONG[:60])}
    shown = data_page.samples(records[:3])
    measured, console = opened(data_page.write_data_page(tmp_path / "page.html", LONG, splits, shown, "phantom"))
    assert console == []
    assert measured["scroll"] == measured["client"] <= PHONE
    assert (measured["broken"], measured["pictures"], measured["requests"]) == (0, 3, 0)
