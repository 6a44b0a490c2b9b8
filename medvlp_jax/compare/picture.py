"""Scores against what they cost, one point per method: the picture of a comparison."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medvlp_jax.compare.table import MAIN
from medvlp_jax.score_table import HEADLINES

_COLOURS = ("#0b62a4", "#b5480a", "#12734f", "#8e3a86", "#7a6200", "#4d5761")  # of the report's style sheet
_MARKERS = "osD^vPX*<>"
_INK, _QUIET, _LINE = "#1b1f24", "#57606a", "#d5d9de"


def points(content: Mapping[str, Any], score: str, cost: str) -> list[tuple[str, float, float, tuple[float, float]]]:
    """(method, cost, mean, how far the interval reaches below and above) where both are known.

    Args: content: of `table.json`. cost: `minutes` of training, or `tflops` of it.
    """
    found = []
    for name, method in content["methods"].items():
        row, seconds = method["scores"].get(score), method["training_seconds"].values()
        if cost == "minutes":
            x = sum(seconds) / len(seconds) / 60 if seconds else None
        else:
            x = method["training_flops"] / 1e12 if method["training_flops"] else None
        if x and row and row["mean"] is not None:
            low, high = row["interval"] or (row["mean"], row["mean"])
            found.append((name, x, row["mean"], (row["mean"] - low, high - row["mean"])))
    return found


def draw(content: Mapping[str, Any], path: Path) -> None:
    """Writes a PNG: zero-shot AUC and R@10 (rows) against minutes and FLOPs of training (columns).

    Bars are the intervals over seeds, hollow marks the untrained models, the dashed line chance.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    style = {
        "font.size": 10.5,
        "text.color": _INK,
        "axes.labelcolor": _INK,
        "xtick.labelcolor": _INK,
        "ytick.labelcolor": _INK,
        "axes.edgecolor": _LINE,
        "xtick.color": _LINE,
        "ytick.color": _LINE,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    places = {name: i for i, name in enumerate(content["methods"])}
    costs = {"minutes": "training time, minutes", "tflops": "training, TFLOPs"}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(9.6, 7.2), layout="constrained", facecolor="white")
        grid = figure.subplots(len(MAIN), len(costs), squeeze=False, sharey="row", sharex="col")
        for axes_row, score in zip(grid, MAIN, strict=True):
            for axes, cost in zip(axes_row, costs, strict=True):
                for name, x, mean, (below, above) in points(content, score, cost):
                    place = places[name]
                    colour, marker = _COLOURS[place % len(_COLOURS)], _MARKERS[place % len(_MARKERS)]
                    bars = [[below], [above]] if below or above else None
                    axes.errorbar(x, mean, yerr=bars, color=colour, marker=marker, markersize=7, capsize=4, zorder=3)
                    untrained = content["methods"][name]["scores"][score]["random_init"]
                    if untrained is not None:
                        axes.plot(x, untrained, color=colour, marker=marker, markersize=6, fillstyle="none", zorder=2)
                known = [
                    method["scores"][score]["chance"]
                    for method in content["methods"].values()
                    if score in method["scores"]
                ]
                if known and known[0] is not None:
                    axes.axhline(known[0], color=_QUIET, linestyle="--", linewidth=1)
                axes.grid(axis="y", color=_LINE, linewidth=0.6)
                axes.margins(x=0.12, y=0.12)
                axes.set_xlim(left=0)
            axes_row[0].set_ylabel(HEADLINES[score])
        for axes, words in zip(grid[-1], costs.values(), strict=True):
            axes.set_xlabel(words)
        handles = [
            Line2D(
                [],
                [],
                color=_COLOURS[i % len(_COLOURS)],
                marker=_MARKERS[i % len(_MARKERS)],
                linestyle="",
                label=name.replace("$", r"\$"),
            )
            for name, i in places.items()
        ]
        handles.append(Line2D([], [], color=_QUIET, marker="o", fillstyle="none", linestyle="", label="untrained"))
        handles.append(Line2D([], [], color=_QUIET, linestyle="--", label="chance"))
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6), frameon=False)
        figure.suptitle(_title(content), fontsize=11.5)
        part = path.with_name(f"{path.name}.tmp")
        figure.savefig(part, format="png", dpi=150, metadata={"Software": None})
    part.replace(path)


def _title(content: Mapping[str, Any]) -> str:
    seeds = len(content["seeds"])
    over = f"mean over {seeds} seeds with Student's 95 % interval" if seeds > 1 else "one seed, no interval"
    return f"{content['data']}/{content['split']}, {content['budget_words']}; {over}"
