"""What takes part in a comparison: configs, read exactly as training reads them, and whether they can be compared."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from medvlp_jax import config as configs

FOLDER = Path("configs")
# Fields that must be the same for scores to be comparable.
SAME = ("data.name", "data.dir", "data.train_split", "data.eval_split", "data.test_split", "final_evaluators")
SAME += ("evaluation.",)
# What the command line sets for every run -> with which flag.
OURS = {"seed": "--seeds", "total_steps": "--budget", "epochs": "--budget"}
_NAMED = ("demo", "small", "data")  # arguments that say which form of a config is meant


class Entry(NamedTuple):
    """A config of a comparison. name: of its runs, `<name>-<seed>`. spec: what `--config` of training takes.

    overrides: flags for every run. config: with those, locked.
    """

    name: str
    spec: str
    overrides: tuple[str, ...]
    config: ConfigDict

    @property
    def fields(self) -> dict[str, Any]:
        """The config, flat."""
        return configs.flat(self.config)


def read_entries(text: str, overrides: Sequence[str] = ()) -> list[Entry]:
    """The entries of `--configs`, with `--config.field=value` flags for all of them.

    Args: text: configs with commas between them: a file of `configs/` by its name or path, or another path; arguments
      stand behind a colon, as training takes them, commas included. `demo` is among them unless they hold `demo`,
      `small` or `data=`.
    Raises: ValueError for an unknown config, argument or field, a field that the comparison sets itself, the same run
      twice, or configs that cannot be compared.
    """
    for flag in overrides:
        field = flag.removeprefix("--config.").partition("=")[0]
        if field in OURS:
            raise ValueError(f"{flag}: the comparison sets {field} itself, by {OURS[field]}. Leave it out.")
        if "=" not in flag:
            raise ValueError(f"{flag} has no value: write --config.{field}=VALUE.")
    entries = []
    for spec in map(_with_demo, split_specs(text)):
        fields = configs.flat(load_config(spec))
        for flag in overrides:
            field = flag.removeprefix("--config.").partition("=")[0]
            if not any(f"{name}.".startswith(f"{field}.") for name in fields):
                close = difflib.get_close_matches(field, fields, n=1)
                hint = f" Did you mean {close[0]}?" if close else " Overrides are for all configs."
                raise ValueError(f"{flag}: {spec} has no field {field}.{hint}")
        config = load_config(spec, overrides)
        entries.append(Entry(_name(config, spec), spec, tuple(overrides), config))
    if not entries:
        raise ValueError(f"--configs is empty. Known: {', '.join(known())}.")
    names = [entry.name for entry in entries]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"--configs names {', '.join(twice)} more than once.")
    check_comparable({entry.name: entry.fields for entry in entries})
    return entries


def known() -> list[str]:
    """Names of the configs under `configs/`."""
    return sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in ("common", "__init__"))


def split_specs(text: str) -> list[str]:
    """`"imitate:demo,preset=released,clip"` -> `["configs/imitate.py:demo,preset=released", "configs/clip.py"]`.

    Raises: ValueError listing the known configs.
    """
    there = f"Known: {', '.join(known()) or f'none, there is no folder {FOLDER} here'}; or a path that ends in .py."
    specs: list[str] = []
    for piece in filter(None, (piece.strip() for piece in text.split(","))):
        head, colon, rest = piece.partition(":")
        if head in known():
            specs.append(f"{FOLDER / head}.py{colon}{rest}")
        elif head.endswith(".py"):
            if not Path(head).is_file():
                raise ValueError(f"--configs names {head!r}, which is not there. {there}")
            specs.append(piece)
        elif specs and ":" in specs[-1] and not colon:
            specs[-1] += f",{piece}"  # the comma stood between arguments
        else:
            raise ValueError(f"--configs names {piece!r}, which is no config. {there}")
    return specs


def load_config(spec: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """The config that `--config spec overrides` gives training. Raises: ValueError with the reason in one line."""
    arguments = ["compare", f"--config={spec}", *overrides]
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
        values(arguments)
        return values["config"].value
    except (flags.Error, OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[-1].removeprefix("ValueError: ") if lines else type(error).__name__
        raise ValueError(f"{spec}: {reason}") from error


def check_comparable(fields: dict[str, dict[str, Any]]) -> None:
    """Raises: ValueError naming the fields on which scores of these flat configs, by name, do not agree."""
    (first, reference), *others = fields.items()
    differ: list[str] = []
    for name, own in others:
        differ += configs.differences(reference, own, (f"{first} has", f"{name} has"), lambda f: f.startswith(SAME))
    if differ:
        raise ValueError(
            "Not comparable, because data or evaluation differ:\n  " + "\n  ".join(differ) + "\n"
            "Give all configs the same arguments (such as data=NAME), or one value to all with --config.FIELD=VALUE."
        )


def _with_demo(spec: str) -> str:
    path, _, argument = spec.partition(":")
    words = [word for word in argument.split(",") if word]
    if not any(word.partition("=")[0] in _NAMED for word in words):
        words.insert(0, "demo")
    return f"{path}:{','.join(words)}"


def _name(config: ConfigDict, spec: str) -> str:
    """The method, then what tells its run from that of its demo: `clip`, `clip-released`, `imitate-small`."""
    parts = [config.method]
    for word in spec.partition(":")[2].split(","):
        key, _, value = word.partition("=")
        if key == "preset" and value != "fixed":
            parts.append(value)
        elif key not in ("demo", "data", "preset"):
            parts.append(word.replace("/", "_"))
    return "-".join(parts)
