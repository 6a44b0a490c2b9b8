"""`comparison.json`: what a comparison is and what was measured for it, so that the same command goes on with it."""

import json
from pathlib import Path
from typing import Any

from medvlp_jax import config as configs
from medvlp_jax.compare.budget import Budget
from medvlp_jax.compare.entries import Entry, check_comparable
from medvlp_jax.data.side_tables import write_json

FILE = "comparison.json"


class Ledger:
    """The file of one comparison. Methods and seeds may be added to it; budget, data and recipes stay.

    methods: name -> config, fields, cost, seconds_per_step, steps. runs: name -> peak_bytes. Another budget may be
    tried until there are steps by one.

    Raises: ValueError when the folder holds something else, another budget, other recipes under the same names, or
      methods that these cannot be compared with.
    """

    def __init__(self, out: Path, budget: Budget, entries: list[Entry]):
        self.path = out / FILE
        self._content: dict[str, Any] = {"budget": str(budget), "methods": {}, "runs": {}}
        if self.path.exists():
            self._content = _read(self.path)
        elif out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ValueError(f"--out={out} holds something else than a comparison ({FILE} is missing). Name a new one.")
        if not any("steps" in method for method in self.methods.values()):
            self._content["budget"] = str(budget)  # nothing was planned by the one before
        if self._content["budget"] != str(budget):
            raise ValueError(
                f"--out={out} holds a comparison with --budget {self._content['budget']}, you ask for {budget}. "
                "Name another --out."
            )
        for entry in entries:
            stored = self.methods.get(entry.name)
            fields = json.loads(json.dumps(entry.fields))
            if stored is None:
                continue
            differ = configs.differences(stored["fields"], fields, ("there", "now"))
            if differ:
                raise ValueError(
                    f"--out={out} holds a comparison with another {entry.name}:\n  " + "\n  ".join(differ) + "\n"
                    "Name another --out, or ask for the same."
                )
        asked = {entry.name: json.loads(json.dumps(entry.fields)) for entry in entries}
        check_comparable(asked | {n: method["fields"] for n, method in self.methods.items() if n not in asked})

    @property
    def methods(self) -> dict[str, dict[str, Any]]:
        """Name -> what is known of a method."""
        return self._content["methods"]

    @property
    def runs(self) -> dict[str, dict[str, Any]]:
        """Name of a run folder -> what is known of it beside what the folder holds."""
        return self._content["runs"]

    def add(self, entry: Entry, **known: Any) -> None:
        """Keeps what is known of a method."""
        about = {"config": entry.spec, "fields": entry.fields}
        self.methods[entry.name] = {**self.methods.get(entry.name, {}), **about, **known}
        self.write()

    def add_peak(self, run: str, peak_bytes: int | None) -> None:
        """Keeps the most memory that any attempt of a run held."""
        before = self.runs.get(run, {}).get("peak_bytes")
        self.runs[run] = {"peak_bytes": max(filter(None, (before, peak_bytes)), default=None)}
        self.write()

    def write(self) -> None:
        """Writes the file; the folder is there."""
        write_json(self.path, self._content)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if all(isinstance(m["fields"], dict) for m in content["methods"].values()) and content["runs"] is not None:
            return {"budget": content["budget"], "methods": content["methods"], "runs": content["runs"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    raise ValueError(f"{path} is damaged: it holds no comparison. Name another --out, or delete the file.")
