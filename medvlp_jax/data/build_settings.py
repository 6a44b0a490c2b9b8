"""Settings of a build: from words of the command line to the config of a builder."""

from __future__ import annotations

import ast
import dataclasses
import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from medvlp_jax.data import data_sets
from medvlp_jax.data.data_sets import BUILDERS
from medvlp_jax.data.staging import config_dict


class PrepareError(RuntimeError):
    """A data set cannot be prepared; the message says why and what to do."""


def load(name: str) -> tuple[Any, ModuleType]:
    """Data set -> its builder class and module. Raises: PrepareError for an unknown one, listing those that exist."""
    if name not in BUILDERS:
        raise PrepareError(data_sets.unknown(name))
    module = importlib.import_module(BUILDERS[name])
    for value in vars(module).values():
        if isinstance(value, type) and getattr(value, "name", None) == name and hasattr(value, "download_and_prepare"):
            return value, module
    raise PrepareError(f"{BUILDERS[name]} defines no builder class for {name!r}.")


def base_configs(builder_class: Any, module: ModuleType) -> dict[str, Any]:
    """Name -> config, of those that a builder comes with."""
    configs = builder_class.BUILDER_CONFIGS or [module.CONFIG]
    return {config.name: config for config in configs}


def config_of(builder_class: Any, module: ModuleType, name: str, settings: Mapping[str, Any]) -> Any:
    """The builder config: the named one, or a copy of it with `settings` changed and a name of its own.

    Raises: PrepareError naming the setting that does not exist or has no such value, and those that do.
    """
    known = base_configs(builder_class, module)
    wanted = name.partition("/")[2] or next(iter(known))
    named = bool(builder_class.BUILDER_CONFIGS)
    if named and wanted not in known and not settings:
        raise PrepareError(
            f"{builder_class.name} has no config {wanted!r}. Configs: {', '.join(known)}; or make your own by giving "
            "settings with the new name."
        )
    base = known.get(wanted) if named else None
    base = base or dataclasses.replace(next(iter(known.values())), name=wanted)
    fields = {"name": base.name, **config_dict(base)}
    changes = {}
    for key, value in settings.items():
        if key not in fields:
            listing = ", ".join(f"{field}={default!r}" for field, default in fields.items())
            raise PrepareError(f"{builder_class.name} has no setting {key!r}. Settings and their defaults: {listing}.")
        changes[key] = _convert(key, value, getattr(base, key))
    config = dataclasses.replace(base, **changes)
    if config_dict(config) == config_dict(base):
        return base
    if config.name in known and named:
        raise PrepareError(
            f"The settings differ from those of the config {config.name!r}, which always means the same data. "
            f"Give yours another name, for example --name {config.name}_2."
        )
    if not config.name or "/" in config.name or config.name.startswith("."):
        raise PrepareError(f"--name {config.name!r} must be a plain folder name.")
    return config


def _convert(key: str, value: Any, default: Any) -> Any:
    """A setting from the command line -> the type of the field's default."""
    if not isinstance(value, str) or default is None or isinstance(default, str):
        return value
    if isinstance(default, bool):
        if value.lower() in {"true", "1", "yes", "false", "0", "no"}:
            return value.lower() in {"true", "1", "yes"}
        raise PrepareError(f"--{key} {value!r} is not true or false.")
    try:
        if isinstance(default, int | float):
            return type(default)(value)
        parsed = ast.literal_eval(value)
        return type(default)(parsed if isinstance(parsed, tuple | list | dict) else (parsed,))
    except (ValueError, SyntaxError, TypeError) as error:
        raise PrepareError(f"--{key} {value!r} is not a {type(default).__name__} such as {default!r}.") from error


def overrides(words: list[str]) -> dict[str, str]:
    """`--key value`, `--key=value` and `--config.key=value` -> {key: value}. Raises: PrepareError for other words."""
    settings: dict[str, str] = {}
    queue = list(words)
    while queue:
        word = queue.pop(0)
        if not word.startswith("--"):
            raise PrepareError(f"Unexpected argument {word!r}; settings are written --key value or --key=value.")
        key, equals, value = word[2:].removeprefix("config.").partition("=")
        if not equals:
            if not queue:
                raise PrepareError(f"{word} has no value.")
            value = queue.pop(0)
        settings[key.replace("-", "_") if "." not in key else key] = value
    return settings
