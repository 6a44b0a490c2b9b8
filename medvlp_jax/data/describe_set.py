"""What is known of a data set before and after it is prepared: access, configs, settings with their meaning, builds."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from medvlp_jax.data.records import split_order
from medvlp_jax.data.staging import config_dict

WIDTH = 120
_WRAP = {"break_long_words": False, "break_on_hyphens": False}


def summary(module: ModuleType) -> str:
    """The first line of what a builder says of itself."""
    return (module.__doc__ or "no description").strip().splitlines()[0]


def describe(name: str, module: ModuleType, configs: Mapping[str, Any], data_dir: Path) -> dict[str, Any]:
    """Args: configs: name -> builder config. data_dir: where to look for builds of it.

    Returns: {"name", "summary", "access", "page", "configs": {config: {setting: default}}, "settings": {setting:
      {"type", "meaning"}}, "prepared": [{"config", "version", "folder", "records": {split: number}}]}.
    """
    page = Path(module.__file__ or "").with_name("README.md")
    return {
        "name": name,
        "summary": summary(module),
        "access": access(page.read_text(encoding="utf-8")) if page.exists() else "",
        "page": "/".join(page.parts[-3:]),
        "configs": {
            config.name: {key: value for key, value in config_dict(config).items() if key != "name"}
            for config in configs.values()
        },
        "settings": meanings(type(next(iter(configs.values())))),
        "prepared": prepared(data_dir, name),
    }


def access(page: str) -> str:
    """The paragraph of a builder's page that says how to get the data; "" where none is needed."""
    found = re.search(r"\*\*Access\.\*\*\s+(.*?)\n\s*\n|^## Access\s+(.*?)\n\s*\n", page, re.DOTALL | re.MULTILINE)
    return " ".join((found.group(1) or found.group(2)).split()) if found else ""


def meanings(config_type: type) -> dict[str, dict[str, str]]:
    """Setting -> its type, and the string that stands below it in the class or one it is made from."""
    found: dict[str, dict[str, str]] = {}
    for cls in reversed(config_type.__mro__):
        if not dataclasses.is_dataclass(cls) or cls.__module__.startswith("tensorflow_datasets"):
            continue
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        lines = body.body  # type: ignore[attr-defined]
        for line, following in zip(lines, [*lines[1:], None], strict=True):
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                said = following.value if isinstance(following, ast.Expr) else None
                text = said.value if isinstance(said, ast.Constant) and isinstance(said.value, str) else ""
                meaning = " ".join(text.split()) or found.get(line.target.id, {}).get("meaning", "")
                found[line.target.id] = {"type": ast.unparse(line.annotation), "meaning": meaning}
    return found


def prepared(data_dir: Path, name: str) -> list[dict[str, Any]]:
    """The finished builds of a data set under `data_dir`."""
    found = []
    for path in sorted(data_dir.glob(f"{name}/*/*/counts.json")):
        try:
            splits = json.loads(path.read_text(encoding="utf-8"))["splits"]
            records = {split: int(splits[split]["records"]) for split in split_order(splits)}
        except (ValueError, KeyError, TypeError, AttributeError):
            records = {}
        build = path.parent
        found.append({"config": build.parent.name, "version": build.name, "folder": str(build), "records": records})
    return found


def lines(described: Mapping[str, Any]) -> list[str]:
    """`describe` in words."""
    name = described["name"]
    out = [f"{name}: {described['summary']}"]
    if described["access"]:
        out += textwrap.wrap(f"Access: {described['access']}", WIDTH, subsequent_indent="  ", **_WRAP)
    configs = described["configs"]
    first = next(iter(configs.values()))
    out.append(f"Settings (--<setting> <value>) of {name}/{next(iter(configs))}, their defaults and what they mean:")
    for setting, default in first.items():
        meaning = described["settings"].get(setting, {}).get("meaning", "")
        indent = " " * 6
        out += textwrap.wrap(f"  --{setting} {default!r}  {meaning}".rstrip(), WIDTH, subsequent_indent=indent, **_WRAP)
    for config, settings in list(configs.items())[1:]:
        changed = [f"--{key} {value!r}" for key, value in settings.items() if first.get(key) != value]
        out.append(f"Config {name}/{config}: the same with {' '.join(changed) or 'nothing changed'}")
    for build in described["prepared"]:
        counts = ", ".join(f"{count} {split}" for split, count in build["records"].items()) or "counts.json is damaged"
        out.append(f"Prepared: {name}/{build['config']} {build['version']}: {counts}  ({build['folder']})")
    if not described["prepared"]:
        out.append("Prepared: nothing yet. What a build would take, before it starts: add --estimate.")
    out.append(f"More: {described['page']}")
    return out
