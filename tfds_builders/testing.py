"""For the tests of builders: what a plan makes, and tables and files written in a line."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from medvlp_jax.data.packed import pack, unpack
from medvlp_jax.data.records import SOURCE
from medvlp_jax.data.staging import Rejection, config_dict, count_reasons


def settings(**changes: Any) -> SimpleNamespace:
    """What a build of local files is asked for: the defaults of `common.LocalConfig` with some changed."""
    from tfds_builders.common import LocalConfig  # imports TFDS

    fields = [field for field in dataclasses.fields(LocalConfig) if field.default is not dataclasses.MISSING]
    return SimpleNamespace(**{field.name: field.default for field in fields} | changes)


@dataclasses.dataclass
class Made:
    """Everything a plan makes: split -> raw image id -> example, and what was refused."""

    splits: dict[str, dict[str, dict[str, Any]]]
    rejections: list[Rejection]
    provenance: dict[str, Any]

    @property
    def counts(self) -> dict[str, int]:
        """Records per split."""
        return {split: len(examples) for split, examples in self.splits.items()}

    @property
    def reasons(self) -> dict[str, int]:
        """Rejections per reason."""
        return count_reasons(self.rejections)

    @property
    def examples(self) -> dict[str, dict[str, Any]]:
        """Raw image id -> example."""
        return {key: example for examples in self.splits.values() for key, example in examples.items()}

    def why(self, item: str) -> str:
        """The reason of the rejection whose item has this in it."""
        (reason,) = {rejection.reason for rejection in self.rejections if item in rejection.item}
        return reason

    def own(self, image_id: str) -> dict[str, int]:
        """The labels of a record in the set's own words."""
        return {label["name"]: label["state"] for label in self.examples[image_id]["own_labels"]}


def make(module: ModuleType, **settings: Any) -> Made:
    """Runs plan and make_examples in this process, on items as a staged build hands them over. Asserts that no patient
    is in two splits, ids are raw nowhere but in the side table, and everything of the plan is an example or a
    rejection."""
    config = dataclasses.replace(module.CONFIG, **settings)
    plan = module.plan(config)
    splits: dict[str, dict[str, dict[str, Any]]] = {}
    rejections = list(plan.rejections)
    for split, items in plan.splits.items():
        for item in unpack(pack(list(items))):
            try:
                made = module.make_examples(item, config)
            except Rejection as rejection:
                rejections.append(rejection)
                continue
            for key, example in made:
                assert key == example[SOURCE]["image_id"]
                splits.setdefault(split, {})[key] = example
    patients = [{example["patient_id"] for example in examples.values()} for examples in splits.values()]
    assert sum(map(len, patients)) == len(set().union(*patients))
    made_count = sum(map(len, splits.values()))
    assert made_count + len(rejections) >= sum(map(len, plan.splits.values()))
    assert config_dict(config)["size"] == config.size
    return Made(splits, rejections, plan.provenance)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A CSV file, compressed when its name ends in .gz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    data = text.getvalue().encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_files(root: Path, files: dict[str, bytes | str]) -> None:
    """Files by relative path, folders made as needed."""
    for name, content in files.items():
        path = root / name
        os.makedirs(path.parent, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def public_table(name: str) -> Path:
    """A label table of the torchxrayvision wheel (`pip install --no-deps torchxrayvision`), read and never copied.

    It is looked for in this environment and under $MEDVLP_PUBLIC_TABLES. Skips the test where it is not there.
    """
    import importlib.util

    import pytest

    found = importlib.util.find_spec("torchxrayvision")
    folders = [Path(place) / "data" for place in (found.submodule_search_locations or () if found else ())]
    folders += [Path(os.environ["MEDVLP_PUBLIC_TABLES"])] if "MEDVLP_PUBLIC_TABLES" in os.environ else []
    for folder in folders:
        if (folder / name).exists():
            return folder / name
    pytest.skip(f"{name} of the torchxrayvision wheel is not installed here, nor under $MEDVLP_PUBLIC_TABLES")


def local_data(name: str) -> Path:
    """A folder of real data beside the repository (or under $MEDVLP_SHARED_DATA). Skips the test where it is not."""
    import pytest

    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("MEDVLP_SHARED_DATA", beside)) / name
    if not folder.exists():
        pytest.skip(f"the data set {name} is not beside the repository, nor under $MEDVLP_SHARED_DATA")
    return folder
