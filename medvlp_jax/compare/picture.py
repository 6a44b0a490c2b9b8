"""Scores against what they cost, one point per method: the picture of a comparison."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medvlp_jax.compare.table import MAIN, scored
from medvlp_jax.score_table import HEADLINES

_COLOURS = ("#0b62a4", "#b5480a", "#12734f", "#8e3a86", "#7a6200", "#4d5761")  # of the report's style sheet
_MARKERS = "osD^vPX*<>"
WIDE = 20  # costs that differ by more than this factor are shown on a logarithmic scale
_INK, _QUIET, _LINE = "#1b1f24", "#57606a", "#d5d9de"


def points(content: Mapping[str, Any], score: str, cost: str) -> list[tuple[str, float, float, tuple[float, float]]]:
    """(method, cost, mean, how far the interval reaches below and above) where both are known.

    Args: content: of `table.json`. cost: `minutes` of training, or `flops` of it.
    """
    found = []
    for name, method in content["methods"].items():
        row, seconds = method["scores"].get(score), method["training_seconds"].values()
        if cost == "minutes":
            x = sum(seconds) / len(seconds) / 60 if seconds else None
        else:
            x = method["training_flops"]
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
    from matplotlib.ticker import EngFormatter, MaxNLocator

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
    looks = {
        name: {"color": _COLOURS[i % len(_COLOURS)], "marker": _MARKERS[i % len(_MARKERS)], "linestyle": ""}
        for i, name in enumerate(content["methods"])
    }
    shown = scored(content["methods"], MAIN) or MAIN[:1]
    costs = {"minutes": "training time, minutes", "flops": "FLOPs of training"}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(9.6, 1.6 + 2.9 * len(shown)), layout="constrained", facecolor="white")
        grid = figure.subplots(len(shown), len(costs), squeeze=False, sharey="row", sharex="col")
        for axes_row, score in zip(grid, shown, strict=True):
            for axes, cost in zip(axes_row, costs, strict=True):
                found = points(content, score, cost)
                for name, x, mean, (below, above) in found:
                    bars = [[below], [above]] if below or above else None
                    axes.errorbar(x, mean, yerr=bars, capsize=4, zorder=3, markersize=7, **looks[name])
                    untrained = content["methods"][name]["scores"][score]["random_init"]
                    if untrained is not None:
                        axes.plot(x, untrained, fillstyle="none", zorder=2, markersize=6, **looks[name])
                rows = [method["scores"].get(score) for method in content["methods"].values()]
                chance = next((row["chance"] for row in rows if row and row["chance"] is not None), None)
                if chance is not None:
                    axes.axhline(chance, color=_QUIET, linestyle="--", linewidth=1)
                axes.grid(axis="y", color=_LINE, linewidth=0.6)
                axes.margins(x=0.12, y=0.12)
                costs_found = [x for _, x, _, _ in found]
                if found and max(costs_found) > WIDE * min(costs_found):
                    axes.set_xscale("log")
                elif found:
                    axes.set_xlim(0, 1.12 * max(costs_found))
                    axes.xaxis.set_major_locator(MaxNLocator(5))
                if cost == "flops":
                    axes.xaxis.set_major_formatter(EngFormatter())
            axes_row[0].set_ylabel(HEADLINES[score])
        for axes, words in zip(grid[-1], costs.values(), strict=True):
            axes.set_xlabel(words)
        handles = [Line2D([], [], label=name.replace("$", r"\$"), **look) for name, look in looks.items()]
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
