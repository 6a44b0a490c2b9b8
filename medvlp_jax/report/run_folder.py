"""What a run folder holds, read without the model: config, metrics, scores, log, counts of its data."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from medvlp_jax import config as configs
from medvlp_jax.data.records import SPLITS, prepared_folder
from medvlp_jax.metrics import read_metrics
from medvlp_jax.report.scores import Scores, read_scores

RATES = ("steps_per_second", "images_per_second", "data_wait_share")
ACCOUNT = "goodput/"  # names of measured times, see `timing`
NOT_TERMS = ("step", "seconds", "gradient_norm", "learning_rate", "mu", *RATES)

_LOG_WORDS = ("command", "devices", "model", "compile", "trained", "stopped")


class Run(NamedTuple):
    """One run. training, validation: lines of `metrics.jsonl`. missing: sentences on what is not there and what helps.

    elsewhere: scores on other data sets. log: the last line of `log.txt` for each word that starts one (`model`, ...).
    """

    path: Path
    name: str
    config: dict[str, Any]
    training: list[dict[str, Any]]
    validation: list[dict[str, Any]]
    scores: Scores | None
    elsewhere: list[Scores]
    counts: dict[str, Any] | None
    log: dict[str, str]
    missing: list[str]

    @property
    def parameters(self) -> str:
        """Number of trainable parameters as the log tells it, or ""."""
        match = re.match(r"([\d,]+) trainable", self.log.get("model", ""))
        return match[1] if match else ""

    @property
    def step(self) -> int | None:
        """The step that was scored, else the last one that was logged."""
        step = self.scores.about.get("step") if self.scores else None
        if isinstance(step, int):
            return step
        return self.training[-1]["step"] if self.training else None


def read_run(path: str | Path, *, name: str = "", data_dir: str | Path | None = None) -> Run:
    """Reads a run folder; what is absent or damaged inside becomes a sentence in `missing`.

    Args: name: what to call the run; default: its folder. data_dir: where prepared data is, when it moved.
    Raises: FileNotFoundError when the folder is not there or holds no run; ValueError when its config is damaged.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"There is no run folder {path}.")
    try:
        config = configs.flat(configs.load(path))
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{path / 'config.json'} is damaged: it must hold an object of fields.") from error
    missing: list[str] = []
    training, validation = _metrics(path, config, missing)
    scores = None
    try:
        scores = read_scores(path / "scores.json")
    except (FileNotFoundError, ValueError) as error:
        missing.append(f"{error} Scores come at the end of training, or with --mode eval.")
    elsewhere = []
    for other in sorted(path.glob("scores-*.json")):
        try:
            elsewhere.append(read_scores(other))
        except ValueError as error:
            missing.append(str(error))
    counts = _counts(data_dir or config.get("data.dir", "data"), str(config.get("data.name", "")), missing)
    log = _log(path / "log.txt")
    return Run(path, name or path.resolve().name, config, training, validation, scores, elsewhere, counts, log, missing)


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Folder names, with as many parents before them as it takes to tell them apart."""
    parts = [path.resolve().parts for path in paths]
    for length in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(set(parts)):
            return names
    return names


def _metrics(path: Path, config: dict[str, Any], missing: list[str]) -> tuple[list[dict], list[dict]]:
    file = path / "metrics.jsonl"
    if not file.exists():
        missing.append("metrics.jsonl is not there: no training curves.")
        return [], []
    lines = read_metrics(path)
    written = sum(bool(line.strip()) for line in file.read_text(encoding="utf-8", errors="replace").splitlines())
    if written > len(lines):
        missing.append(f"{written - len(lines)} of {written} lines of metrics.jsonl are damaged and left out.")
    lines = [{k: v for k, v in line.items() if isinstance(v, int | float)} for line in lines]
    training = [line for line in lines if "seconds" in line or "learning_rate" in line]
    others = [line for line in lines if "seconds" not in line and "learning_rate" not in line]
    if not training:
        missing.append("metrics.jsonl holds no training step yet: no training curves.")
    tested = f"{config.get('data.test_split', 'test')}/"
    prefix = f"{config.get('data.eval_split', 'validation')}/"
    validation = [
        {name.removeprefix(prefix): value for name, value in line.items()}
        for line in others
        if not any(name.startswith(tested) for name in line)
    ]
    return training, validation


def _counts(data_dir: str | Path, data: str, missing: list[str]) -> dict[str, Any] | None:
    try:
        counts = json.loads((prepared_folder(data_dir, data) / "counts.json").read_text(encoding="utf-8"))
        splits = counts["splits"]
        if all(isinstance(split, dict) for split in splits.values()):
            order = [*(name for name in SPLITS if name in splits), *(name for name in splits if name not in SPLITS)]
            return counts | {"splits": {name: splits[name] for name in order}}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    missing.append(f"The prepared data {data!r} is not at hand: no counts. Say where it is with --data_dir.")
    return None


def _log(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    return _tagged(path.read_text(encoding="utf-8", errors="replace").splitlines())


def _tagged(lines: Iterable[str]) -> dict[str, str]:
    found = {}
    for line in lines:
        word, _, rest = line.partition(" ")
        if word in _LOG_WORDS and rest.startswith(" "):
            found[word] = rest.strip()
    return found
