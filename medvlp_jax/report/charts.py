"""Curves as inline SVG whose colours are the page's own, so that light, dark and print each get theirs."""

import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from medvlp_jax.report.run_folder import ACCOUNT, NOT_TERMS, Run
from medvlp_jax.report.scores import TITLES, Score

SERIES = 6  # colours that a chart can tell apart
NAME = 24  # characters of a name in a legend

# Stand-ins that matplotlib draws with -> variables of the page's style sheet.
_COLOURS = {"#010a01": "--ink", "#010a02": "--quiet", "#010a03": "--line"} | {
    f"#010b0{i + 1}": f"--series-{i + 1}" for i in range(SERIES)
}
_INK, _QUIET, _LINE, *_PALETTE = _COLOURS
_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))


class Series(NamedTuple):
    """A curve: name, steps, values."""

    name: str
    x: list[float]
    y: list[float]


class Chart(NamedTuple):
    """A drawing and the sentence that stands for it where it cannot be seen."""

    title: str
    svg: str
    summary: str


def training_charts(run: Run) -> list[Chart]:
    """Loss and its terms, learning rate, gradient norm, validation scores, images per second; those that exist."""
    names = {name for line in run.training for name in line if not name.startswith(ACCOUNT)}
    terms = sorted(names - {*NOT_TERMS, "loss"})
    lines = run.training
    plans: list[tuple[str, list[Series], bool]] = [
        ("Loss", [_series("training", lines, "loss"), _series("validation", run.validation, "loss")], False),
        ("Loss terms, training", [_series(name, lines, name) for name in terms[:SERIES]], False),
        ("Learning rate", [_series("learning rate", lines, "learning_rate")], False),
        ("Gradient norm", [_series("gradient norm", lines, "gradient_norm")], True),
        ("Images per second", [_series("images per second", lines, "images_per_second")], False),
    ]
    for title, scores in _validation_scores([run]):
        plans.append((title, [_series(_short(score), run.validation, score.name) for score in scores[:SERIES]], False))
    return _charts(plans)


def comparison_charts(runs: Sequence[Run]) -> list[Chart]:
    """The same quantities with one curve per run."""

    def overlay(which: Callable[[Run], Iterable[Mapping[str, Any]]], name: str) -> list[Series]:
        return [_series(run.name, which(run), name) for run in runs]

    plans = [
        ("Loss, training", overlay(lambda run: run.training, "loss"), False),
        ("Loss, validation", overlay(lambda run: run.validation, "loss"), False),
        ("Learning rate", overlay(lambda run: run.training, "learning_rate"), False),
        ("Gradient norm", overlay(lambda run: run.training, "gradient_norm"), True),
    ]
    for title, scores in _validation_scores(runs):
        name = f"{title}: {_short(scores[0])}"
        plans.append((name, overlay(lambda run: run.validation, scores[0].name), False))
    return _charts(plans)


def _validation_scores(runs: Sequence[Run]) -> list[tuple[str, list[Score]]]:
    """Headline scores among the validation lines, by protocol; of retrieval the whole report when it is there."""
    names = dict.fromkeys(name for run in runs for line in run.validation for name in line if "/" in name)
    found: dict[str, list[Score]] = {}
    for score in (Score(name.partition("/")[0], name, None) for name in names):
        if score.protocol != "loss" and score.headline and "chance" not in score.name and score.better:
            found.setdefault(score.protocol, []).append(score)
    whole = [score for score in found.get("retrieval", ()) if score.name.startswith("retrieval/report/")]
    if whole:
        found["retrieval"] = whole
    order = [*TITLES, *(protocol for protocol in found if protocol not in TITLES)]
    return [(f"Validation: {TITLES.get(p, p).lower()}", found[p]) for p in order if p in found]


def _short(score: Score) -> str:
    return score.label.removeprefix("report · ")


def _series(name: str, lines: Iterable[Mapping[str, Any]], key: str) -> Series:
    points = [(line["step"], line[key]) for line in lines if key in line]
    return Series(name, [x for x, _ in points], [y for _, y in points])


def _charts(plans: Sequence[tuple[str, list[Series], bool]]) -> list[Chart]:
    charts = []
    for title, series, log in plans:
        series = [s for s in series if s.y]
        if series:
            summary = "; ".join(f"{s.name} from {s.y[0]:.4g} to {s.y[-1]:.4g}" for s in series)
            steps = f"steps {min(s.x[0] for s in series):,} to {max(s.x[-1] for s in series):,}"
            charts.append(Chart(title, draw(series, log=log, mark=f"c{len(charts)}"), f"{summary}; {steps}."))
    return charts


def draw(series: Sequence[Series], *, log: bool = False, mark: str = "c") -> str:
    """SVG of curves over steps.

    Args: log: logarithmic values. mark: put before every id, so that several drawings fit in one page.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullLocator

    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": mark,
        "font.size": 11.5,
        "text.color": _INK,
        "axes.labelcolor": _INK,
        "xtick.labelcolor": _INK,
        "ytick.labelcolor": _INK,
        "xtick.color": _LINE,
        "ytick.color": _LINE,
        "axes.edgecolor": _LINE,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(4.7, 2.7 + 0.2 * ((len(series) + 1) // 2)), layout="constrained")
        axes = figure.add_subplot()
        for i, (name, x, y) in enumerate(series):
            name = name if len(name) <= NAME else f"{name[: NAME // 2]}…{name[-NAME // 2 + 1 :]}"
            name = " " + name.replace("$", r"\$")  # no formulas; names with a leading _ would be left out
            colour, dash = _PALETTE[i % SERIES], _DASHES[i % len(_DASHES)]
            marker = "o" if len(x) < 15 else None
            axes.plot(x, y, color=colour, linestyle=dash, linewidth=1.6, marker=marker, markersize=3.5, label=name)
        if log and all(value > 0 for s in series for value in s.y):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.grid(axis="y", color=_LINE, linewidth=0.6)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_xlabel("step")
        if len(series) > 1:
            place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2}
            axes.legend(frameon=False, fontsize=10.5, ncols=2, **place)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _for_the_page(out.getvalue(), mark)


def _for_the_page(svg: str, mark: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = svg.replace("<svg", '<svg aria-hidden="true"', 1)
    svg = re.sub(r'\bid="', f'id="{mark}-', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{mark}-", svg)
    for colour, variable in _COLOURS.items():
        svg = svg.replace(colour, f"var({variable})")
    return re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", svg)
