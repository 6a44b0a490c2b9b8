"""The config of a run on disk: written once, compared when the run resumes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from medvlp_jax.data import whole_files

# What may change between two sessions of one run without making it another run.
FREE_FIELDS = (
    "total_steps",
    "epochs",
    "log_every_steps",
    "checkpoint_every_steps",
    "eval_every_steps",
    "keep_checkpoints",
    "hang_seconds",
    "join_seconds",
    "log_examples",
    "eval_batch_size",
    "evaluators",
    "final_evaluators",
    "evaluation.",
    "report",
    "mesh.",
    "data.dir",
    "data.threads",
    "data.workers",
    "data.eval_split",
    "data.test_split",
    "text.cache",
    "model.trunk.remat",
    "text.remat",
)

NO_FIELD = "(no such field)"


def flat(config: Any) -> dict[str, Any]:
    """The config as dotted names -> values, tuples as lists."""
    result = {}

    def walk(prefix: str, node: Any) -> None:
        for name, value in node.items():
            if isinstance(value, ConfigDict | dict):
                walk(f"{prefix}{name}.", value)
            else:
                result[prefix + name] = list(value) if isinstance(value, tuple) else value

    walk("", config)
    return result


def differing(*fields: dict[str, Any]) -> dict[str, list[Any]]:
    """What flat configs do not agree on, sorted: field -> the value of each, `NO_FIELD` where it has none."""
    names = sorted({name for config in fields for name in config})
    rows = {name: [config.get(name, NO_FIELD) for config in fields] for name in names}
    return {name: values for name, values in rows.items() if any(value != values[0] for value in values)}


def makes_another_run(field: str) -> bool:
    """Whether a run is another one with another value of a field: not with `FREE_FIELDS`."""
    return not field.startswith(FREE_FIELDS)


def differences(
    one: dict[str, Any],
    other: dict[str, Any],
    words: tuple[str, str],
    which: Callable[[str], bool] = makes_another_run,
) -> list[str]:
    """A line for every field in which two flat configs differ, such as "seed: the run has 0, you ask for 1".

    Args: words: before the value of the one and of the other. which: says which fields are looked at.
    """
    rows = {name: values for name, values in differing(one, other).items() if which(name)}
    return [f"{name}: {words[0]} {a!r}, {words[1]} {b!r}" for name, (a, b) in rows.items()]


def claim_workdir(config: Any, workdir: Path, *, write: bool = True) -> None:
    """Writes `config.json` into a new run folder, or checks that an old one belongs to the same run.

    Raises: ValueError listing the fields that differ from the run's config.
    """
    path = Path(workdir) / "config.json"
    current = json.loads(json.dumps(flat(config)))
    # Before its first checkpoint a run has no past.
    started = any(entry.name.isdigit() for entry in (Path(workdir) / "checkpoints").glob("*"))
    if path.exists() and started:
        stored = json.loads(path.read_text(encoding="utf-8"))
        differ = differences(stored, current, ("the run has", "you ask for"))
        if differ:
            raise ValueError(
                f"The run folder {workdir} belongs to another config:\n  " + "\n  ".join(differ) + "\n"
                "Use another --workdir, or the config that this run was started with."
            )
    if write:
        whole_files.write_text(path, json.dumps(current, indent=1) + "\n")


def load(workdir: str | Path) -> ConfigDict:
    """The config stored in a run folder, locked.

    Raises: FileNotFoundError when the folder holds no run; ValueError when its `config.json` is damaged.
    """
    path = Path(workdir) / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"{workdir} holds no run: {path.name} is missing. Train first, or check --workdir.")
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}); the run cannot be opened.") from error
    return from_flat(stored)


def from_flat(stored: dict[str, Any]) -> ConfigDict:
    """Inverse of `flat`, locked."""
    config = ConfigDict()
    for name, value in stored.items():
        *parents, last = name.split(".")
        node = config
        for parent in parents:
            if parent not in node:
                node[parent] = ConfigDict()
            node = node[parent]
        node[last] = tuple(value) if isinstance(value, list) else value
    return config.lock()
