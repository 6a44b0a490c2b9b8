"""The pages: what they hold, that they need no network, that texts are escaped, and what is said when things lack."""

import html.parser
import json
import re

import fabricated
import pytest

from medvlp_jax.report import charts, page
from medvlp_jax.report import gallery as galleries
from medvlp_jax.report.__main__ import main

SECTIONS = ("run", "data", "training", "scores", "images", "map", "time", "environment")


class Reader(html.parser.HTMLParser):
    """Collects tags with their attributes, ids, and checks that what opens also closes."""

    VOID = ("meta", "img", "br", "path", "line", "circle", "rect", "use", "link")

    def __init__(self, text):
        super().__init__()
        self.tags, self._open = [], []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self._open.pop() == tag

    def values(self, *names):
        return [a[name] for _, a in self.tags for name in names if name in a]


@pytest.fixture
def real_drawings():
    """Asked for by tests that look at curves."""


@pytest.fixture(autouse=True)
def drawings(request, monkeypatch):
    """Drawing takes a second a page: most tests go without."""
    if "real_drawings" not in request.fixturenames:
        monkeypatch.setattr(charts, "draw", lambda *_, **__: '<svg aria-hidden="true"></svg>')


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a report of a fabricated run, with its gallery when it has one, and returns the text."""
    monkeypatch.setattr(galleries, "_key", lambda workdir, step: f"{galleries.VERSION}:{step}:")

    def write(name="demo", **content):
        folder = fabricated.make_run(tmp_path / name, **content)
        path = page.write_report([folder], say=lambda line: None)
        assert path == folder / "report.html"
        return path.read_text(encoding="utf-8")

    return write


def test_a_report_holds_every_part(write):
    text = write(gallery=fabricated.gallery(), scores=fabricated.scores(patients_shared_with_training=7))
    reader = Reader(text)
    assert {a["id"] for tag, a in reader.tags if tag == "section"} == set(SECTIONS)
    for expected in (
        *("imitate, preset fixed", "339,144", "Not for diagnosis", "python -m medvlp_jax.main"),
        *("29.5 %", "0.934", "0.921 – 0.947", "5 seeds", "An image must find its own text."),
        *("Fracture", "no positive image", "optimizer.learning_rate", "Goodput", "own report", "(text not public)"),
        *("not patients", "record 3 of the test split", "t-SNE", "7 of these patients were seen in training"),
    ):
        assert expected in text, expected
    assert text.count("<details>") >= 4
    assert len(text) < 5_000_000


def test_nothing_is_loaded_from_elsewhere(write, real_drawings):
    text = write(gallery=fabricated.gallery())
    reader = Reader(text)
    for target in reader.values("src", "href", "xlink:href", "action", "data", "srcset"):
        assert target.startswith(("#", "data:image/jpeg;base64,")), target
    assert {tag for tag, _ in reader.tags} & {"script", "link", "iframe", "object", "embed", "base"} == set()
    assert not re.search(r"@import|url\((?!#)", text)
    assert [name for _, a in reader.tags for name in a if name.startswith("on")] == []


def test_it_can_be_read_without_seeing_it(write, real_drawings):
    reader = Reader(write(gallery=fabricated.gallery()))
    assert all(a.get("alt") for tag, a in reader.tags if tag == "img")
    assert all("aria-hidden" in a or "aria-label" in a for tag, a in reader.tags if tag == "svg")
    assert all("scope" in a for tag, a in reader.tags if tag == "th")
    ids = reader.values("id")
    assert len(ids) == len(set(ids))
    assert {t[1:] for t in reader.values("href") if t.startswith("#")} <= set(ids)
    assert [tag for tag, _ in reader.tags].count("h1") == 1


def test_texts_and_names_are_escaped(write):
    evil = "<script>alert(1)</script>"
    text = write(
        gallery=fabricated.gallery([fabricated.card(texts={"findings": evil}, kind="typical", finding=evil)]),
        scores=fabricated.scores(
            [fabricated.score(f"{evil}/auc/{evil}", 0.5)], protocols={evil: evil}, skipped={evil: {evil: evil}}
        ),
        config={"data.name": evil, 'a"b': evil},
        log=f"devices   {evil}\ncommand   {evil}\n",
    )
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    text = write(gallery=fabricated.gallery())
    assert "Heart &lt;b&gt;large&lt;/b&gt; &amp; &#34;old&#34; {{ 7 * 7 }}" in text


def test_records_that_are_not_public_show_neither_text_nor_image(write):
    text = write(gallery=fabricated.gallery([], public=0, map=None))
    assert galleries.NOT_PUBLIC in text
    assert "<img" not in text
    assert "0.934" in text  # scores alone


def test_without_pictures_when_asked(tmp_path, write):
    write(gallery=fabricated.gallery())
    out = tmp_path / "sub.html"
    assert page.write_report([tmp_path / "demo"], out, pictures=False) == out
    text = out.read_text()
    assert "Made without pictures, as asked." in text
    assert "Heart" not in text


@pytest.mark.parametrize(
    ("lacks", "says"),
    [
        ({"scores": None}, "scores.json is not there"),
        ({"metrics": None}, "metrics.jsonl is not there"),
        ({"log": None}, "not logged"),
        ({"metrics": []}, "no training step yet"),
        ({"scores": {"trained": {"loss": 1.0}}}, "another layout"),
        ({"scores": fabricated.scores([], protocols={}, skipped={})}, "No scores yet"),
        ({"scores": {"scores": fabricated.SCORES}}, "0.934"),
        ({"config": {"data.name": 7, "method": None}}, "is not at hand"),
        ({}, "No pictures:"),
    ],
)
def test_what_is_missing_is_said(write, lacks, says):
    text = write(**lacks)
    Reader(text)
    assert says in text


def test_scores_on_other_data_stand_behind_the_own_ones(write, tmp_path):
    write()
    other = fabricated.scores([fabricated.score("zero_shot/auc/mean", 0.613)], data="elsewhere/set")
    (tmp_path / "demo" / "scores-elsewhere-set.json").write_text(json.dumps(other))
    (tmp_path / "demo" / "scores-broken.json").write_text("{")
    text = write()
    assert text.index("0.934") < text.index("on elsewhere/set</span>") < text.index("0.613")
    assert "scores-broken.json is damaged" in text


def test_the_logged_command_is_shown_when_there_is_one(write):
    assert "--config configs/x.py:demo" in write(log=f"command   python --config configs/x.py:demo\n{fabricated.LOG}")


def test_a_gallery_of_another_checkpoint_or_a_damaged_one_is_not_used(write, tmp_path):
    assert "Heart" not in write(gallery=fabricated.gallery(key=f"{galleries.VERSION}:300:"))
    (tmp_path / "demo" / "gallery.json").write_text("{")
    assert "Heart" not in write()


# ---- several runs -----------------------------------------------------------


@pytest.fixture
def compare(tmp_path, monkeypatch):
    def compare(*runs):
        monkeypatch.chdir(tmp_path)
        folders = [fabricated.make_run(tmp_path / name, **content) for name, content in runs]
        path = page.write_report(folders, pictures=False)
        assert path.name == "report-comparison.html"
        assert all((folder / "report.html").exists() for folder in folders)
        return path.read_text(encoding="utf-8")

    return compare


def better():
    rows = [*fabricated.SCORES, fabricated.score("zero_shot/auc/mean", 0.99, [0.98, 0.995])]
    return fabricated.scores(rows)


def test_a_comparison_holds_fields_curves_scores_and_times(compare, real_drawings):
    text = compare(("one", {}), ("two", {"config": {"seed": 5}, "scores": better()}))
    reader = Reader(text)
    assert {a["id"] for tag, a in reader.tags if tag == "section"} == {
        *("scores", "config", "training", "time", "environment")
    }
    assert re.search(r"<code>seed</code></th><td><code>0</code></td><td><code>5</code></td>", text)
    assert "batch_size" not in text
    assert text.count('class="value best"') == 1
    assert re.search(r'best"><span class="hidden">clearly best: </span>▲ 0.990', text)
    assert "Loss, training" in text
    assert all(target.startswith("#") for target in reader.values("src", "href", "xlink:href"))
    ids = reader.values("id")
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("about", [{"data": "other"}, {"split": "validation"}, {"split_hash": "0000"}])
def test_runs_of_different_data_are_compared_but_none_is_best(compare, about):
    text = compare(("one", {}), ("two", {"scores": better() | about}))
    assert "The runs were scored on different" in text
    assert 'class="value best"' not in text


def test_runs_without_scores_or_metrics_are_compared(compare):
    text = compare(("one", {"scores": None, "metrics": None}), ("two", {"scores": None}))
    assert "None of these runs has scores yet." in text
    assert "Missing in one" in text
    assert "All fields are equal." in text


def test_twins_in_different_folders_keep_their_names_apart(compare):
    text = compare(("a/run", {}), ("b/run", {}))
    assert "a/run" in text
    assert "b/run" in text


# ---- the command -----------------------------------------------------------


def test_command_prints_the_path(tmp_path, capsys):
    folder = fabricated.make_run(tmp_path / "demo")
    assert main([str(folder), "--no-pictures"]) == 0
    assert capsys.readouterr().out == f"{folder / 'report.html'}\n"


def refused(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    return captured.err


def test_bad_input_is_one_line_and_exit_code_1(tmp_path, capsys):
    good = fabricated.make_run(tmp_path / "good")
    assert "There is no run folder" in refused(capsys, tmp_path / "missing")
    assert "holds no run" in refused(capsys, tmp_path)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    assert "is damaged" in refused(capsys, tmp_path / "broken")
    assert "given twice" in refused(capsys, good, good)
    assert "cannot be written" in refused(capsys, good, "--no-pictures", "--out", tmp_path / "no" / "such" / "x.html")
    assert "cannot be written" in refused(capsys, good, "--no-pictures", "--out", tmp_path)
    assert not list(tmp_path.glob("*.tmp"))


def test_training_sees_nothing_but_value_and_file_errors(tmp_path, monkeypatch):
    folder = fabricated.make_run(tmp_path)
    monkeypatch.setattr(page, "timing", lambda lines: 1 / 0)
    with pytest.raises(ValueError, match="could not be made: ZeroDivisionError"):
        page.write_report([folder], pictures=False)
    with pytest.raises(ValueError, match="No run folder"):
        page.write_report([])


def test_pictures_that_fail_leave_the_rest(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("out of something")

    monkeypatch.setattr(page, "gallery", fails)
    text = page.write_report([fabricated.make_run(tmp_path)], say=print).read_text()
    assert "No pictures: they could not be made. RuntimeError: out of something" in text
    assert "0.934" in text
