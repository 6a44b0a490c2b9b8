"""From run folders to HTML files: gathers, fills the templates, writes."""

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jinja2

from medvlp_jax import config as configs
from medvlp_jax.data import whole_files
from medvlp_jax.goodput import BEAT_SECONDS
from medvlp_jax.metrics import clock
from medvlp_jax.report import charts, scores
from medvlp_jax.report.environment import environment
from medvlp_jax.report.gallery import NOT_PUBLIC, gallery
from medvlp_jax.report.run_folder import Run, distinct_names, read_run
from medvlp_jax.report.timing import timing

REPORT = "report.html"
COMPARISON = "report-comparison.html"

# What people look for first -> field of the config. Fields that a method lacks are left out.
RECIPE = {
    "Data": "data.name",
    "Image size": "image.size",
    "Views": "image.views",
    "Batch size": "batch_size",
    "Steps": "total_steps",
    "Epochs": "epochs",
    "Trunk": "model.trunk.depth",
    "ViT": "model.trunk.vit",
    "Width": "model.trunk.width",
    "Features": "model.features",
    "Text tower": "text.weights",
    "Text layers": "text.layers",
    "Learning rate": "optimizer.learning_rate",
    "Schedule": "optimizer.schedule",
    "Warm-up steps": "optimizer.warmup_steps",
    "Weight decay": "optimizer.weight_decay",
    "Clipping": "optimizer.clip_norm",
    "Compute type": "model.dtype",
    "Seed": "seed",
}


def write_report(
    runs: Sequence[str | Path],
    out: str | Path | None = None,
    *,
    data_dir: str | Path | None = None,
    pictures: bool = True,
    say: Callable[[str], None] = print,
) -> Path:
    """Writes `report.html` into each run folder and, for several runs, a page that compares them.

    Args: out: file to write instead: the report of the single run, or the comparison (default
      `report-comparison.html` in the current folder). data_dir: where prepared data is, when it moved. pictures: make
      test images and the embedding map, from the checkpoint and the test split; what cannot be made is left out and
      the page says so.
    Returns: the report of the single run, or the comparison.
    Raises: FileNotFoundError for a folder that holds no run; ValueError for anything else that stands in the way.
    """
    if not runs:
        raise ValueError("No run folder is given.")
    paths = [Path(path) for path in runs]
    names = distinct_names(paths)
    if len(set(names)) < len(names):
        raise ValueError("The same run folder is given twice.")
    try:
        found = [read_run(path, name=name, data_dir=data_dir) for path, name in zip(paths, names, strict=True)]
        single = Path(out) if out is not None and len(found) == 1 else None
        for run in found:
            path = single or run.path / REPORT
            write(path, _report_page(run, data_dir, pictures, say))
        if len(found) > 1:
            path = Path(out) if out is not None else Path(COMPARISON)
            write(path, _comparison_page(found))
    except (ValueError, FileNotFoundError):
        raise
    except Exception as error:  # a report must not end a training run in any other way
        raise ValueError(f"The report could not be made: {type(error).__name__}: {error}") from error
    return path


def _report_page(run: Run, data_dir: str | Path | None, pictures: bool, say: Callable[[str], None]) -> str:
    made, note = None, "Made without pictures, as asked."
    if pictures:
        made, note = _pictures(run, data_dir, say)
    return render(
        "run.html",
        run=run,
        command=command(run),
        recipe=[(label, run.config.get(field)) for label, field in RECIPE.items()],
        charts=charts.training_charts(run),
        groups=run.scores.groups if run.scores else [],
        tiles=tiles(run),
        timing=timing(run.training),
        beat=f"{BEAT_SECONDS:.0f}",
        gallery=made,
        gallery_note=note,
    )


def _comparison_page(runs: Sequence[Run]) -> str:
    scored = [run for run in runs if run.scores]
    differences = unlike(scored)
    return render(
        "comparison.html",
        runs=runs,
        scored=scored,
        differences=differences,
        fields=configs.differing(*(run.config for run in runs)).items(),
        charts=charts.comparison_charts(runs),
        tables=scores.side_by_side([run.scores for run in scored], comparable=not differences) if scored else [],
        timings=[timing(run.training) for run in runs],
    )


def _pictures(run: Run, data_dir: str | Path | None, say: Callable[[str], None]) -> tuple[dict[str, Any] | None, str]:
    """The gallery and a sentence on what is not in it."""
    scored = run.scores.about.get("step") if run.scores else None
    try:
        made = gallery(run.path, step=scored if isinstance(scored, int) else None, data_dir=data_dir, say=say)
    except FileNotFoundError as error:
        return None, f"No pictures: checkpoint, data or text tower are not at hand. {error}"
    except Exception as error:  # whatever a model or a record does, the rest of the report stands
        return None, f"No pictures: they could not be made. {type(error).__name__}: {error}"
    return made, "" if made["public"] else NOT_PUBLIC


def command(run: Run) -> str:
    """The command of the run: as logged, else its general form."""
    folder = shlex.quote(run.path.name)
    general = f"python -m medvlp_jax.main --config configs/{run.config.get('method', '')}.py --workdir {folder}"
    return run.log.get("command", general)


def tiles(run: Run) -> list[dict[str, str]]:
    """The handful of numbers that stand on top: one per protocol, size, time."""
    found = []
    for group in run.scores.groups if run.scores else []:
        if group.headline and group.protocol != "loss":
            # Probes list small fractions of the labels first.
            best = group.headline[-1] if group.protocol in ("linear_probe", "knn") else group.headline[0]
            interval = scores.show_interval(best.name, best.interval)
            if best.value is None:
                continue
            found.append(
                {
                    "label": group.title,
                    "value": scores.show(best.name, best.value),
                    "note": f"{best.label}{f', {interval}' if interval else ''}",
                }
            )
    spent = timing(run.training)
    if run.parameters:
        found.append({"label": "Trainable parameters", "value": run.parameters, "note": "text tower not counted"})
    if spent:
        note = f"{spent.steps:,} steps, {spent.images_per_second:,.0f} images/s"
        found.append({"label": "Training time", "value": clock(spent.total), "note": note})
    return found


def unlike(scored: Sequence[Run]) -> list[str]:
    """Why scores of these runs cannot be compared: other data, other split, other records. Empty when they can."""
    sentences = []
    for field, what in (("data", "data sets"), ("split", "splits"), ("split_hash", "lists of records")):
        values = [str(run.scores.about.get(field, "not known")) for run in scored]
        if len(set(values)) > 1:
            which = "; ".join(f"{run.name}: {value}" for run, value in zip(scored, values, strict=True))
            sentences.append(f"The runs were scored on different {what} ({which}).")
    return sentences


def render(template: str, **values: Any) -> str:
    """A template of `report/templates` filled in; text is escaped, a name without a value is an error."""
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("medvlp_jax.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    templates.globals.update(show=scores.show, show_interval=scores.show_interval)
    templates.filters.update(clock=clock, dots=_dots, brief=lambda value: f"{value:z.2g}".replace("-", "−"))
    return templates.get_template(template).render(environment=environment(), **values)


def _dots(points: Sequence[Sequence[int]]) -> str:
    """SVG path of dots: lines of no length with round ends."""
    return "".join(f"M{int(x)} {int(y)}h0" for x, y in points)


def write(path: Path, text: str) -> None:
    """Puts a page in place in one step. Raises: ValueError naming what to do when it cannot be written."""
    try:
        whole_files.write_text(path, text)
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror}. Choose another file with --out.") from error
