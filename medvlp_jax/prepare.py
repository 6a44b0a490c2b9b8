"""Turn raw files into records:  python -m medvlp_jax.prepare <name>[/<config>] [--data_dir data] [--<setting>
<value> ...]

    python -m medvlp_jax.prepare                      # lists the data sets; <name> --list: the settings of one
    python -m medvlp_jax.prepare cxr_phantom          # rendered by the project itself, no download
    python -m medvlp_jax.prepare image_report_folder --name ours --manifest studies.csv --columns
    "image=path,report=report"

The built folder `<data_dir>/<name>/<config>/<version>/` holds the records and, beside them, `counts.json` (what was
built), `provenance.json` (settings and checksums of the inputs), `rejected.csv` (every row left out, with its
reason) and `ids.csv` (raw ids, which records hold only hashed). A run that is interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import ast
import concurrent.futures.process
import contextlib
import dataclasses
import errno
import fcntl
import importlib
import io
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from medvlp_jax.data import data_sets, estimate, shuffling
from medvlp_jax.data.data_sets import BUILDERS
from medvlp_jax.data.records import SPLITS, RecordSource
from medvlp_jax.data.side_tables import count_all, table, write_json, write_rejected_and_ids
from medvlp_jax.data.staging import Staging, config_dict


class PrepareError(RuntimeError):
    """A data set cannot be prepared; the message says why and what to do."""


def prepare(
    name: str,
    /,
    data_dir: str | os.PathLike[str] = "data",
    *,
    workers: int | None = None,
    overwrite: bool = False,
    keep_staging: bool = False,
    progress: bool = True,
    beam: str | None = None,
    **settings: Any,
) -> Path:
    """Build a data set unless it is there already, print what was built, and return its folder.

    Args: name: data set, or data set/config. workers: processes, default one per core. overwrite: build again.
      keep_staging: keep the chunk files. beam: options of an Apache Beam pipeline that makes the records. settings:
      fields of the builder's config; strings are converted to the type of the field's default.
    Raises: PrepareError for anything the user can fix.
    """
    builder_class, module = _load(name.split("/")[0])
    config = _config(builder_class, module, name, settings)
    root = Path(data_dir)
    folder = root / builder_class.name / config.name / str(builder_class.VERSION)
    staging_folder = root / ".staging" / builder_class.name / config.name / str(builder_class.VERSION)
    with _lock(staging_folder):
        if folder.exists() and not overwrite:
            if (folder / "counts.json").exists():
                _same_settings(folder, config)
                print(f"Already prepared: {folder}  (the inputs are not read again; --overwrite builds it anew)")
                return folder
            if not any(staging_folder.glob("*.msgpack")):
                raise PrepareError(
                    f"{folder} exists but was not finished by this command. Add --overwrite to build it anew."
                )
        staging = Staging(staging_folder, workers=workers, progress=progress, beam=beam)
        _build(builder_class, config, root, folder, staging)
        if staging.reused:
            print(f"Reused {staging.reused} finished chunks of an earlier run, made {staging.made}.")
        write_rejected_and_ids(folder, staging)
        sources = {split: RecordSource(root, f"{builder_class.name}/{config.name}", split) for split in _splits(folder)}
        counts = count_all(sources, staging, progress)
        provenance = {"config": config_dict(config), "version": str(builder_class.VERSION), **staging.provenance}
        if staging.facts:
            provenance["facts"] = dict(sorted(staging.facts.items()))
        write_json(folder / "provenance.json", provenance)
        extra = list(module.describe(sources)) if hasattr(module, "describe") else []
        write_json(folder / "counts.json", counts)  # last: marks the folder as finished
        if not keep_staging:
            staging.remove()
    print(table(counts))
    for line in extra:
        print(line)
    print(f"Prepared: {folder}")
    return folder


def estimate_build(
    name: str, /, data_dir: str | os.PathLike[str] = "data", *, workers: int | None = None, **settings: Any
) -> list[str]:
    """What `prepare` would take, in words: images, bytes to read, minutes, disk; from a plan and a measured sample.

    Args: as of `prepare`. Raises: PrepareError for what the user can fix, ValueError for what the plan finds wrong.
    """
    builder_class, module = _load(name.split("/")[0])
    config = _config(builder_class, module, name, settings)
    found = estimate.measure(module.plan(config), module.make_examples, config)
    existing = next(folder for folder in (Path(data_dir), *Path(data_dir).absolute().parents) if folder.exists())
    return found.lines(workers or os.cpu_count() or 1, shutil.disk_usage(existing).free)


def _load(name: str) -> tuple[Any, ModuleType]:
    if name not in BUILDERS:
        raise PrepareError(data_sets.unknown(name))
    module = importlib.import_module(BUILDERS[name])
    for value in vars(module).values():
        if isinstance(value, type) and getattr(value, "name", None) == name and hasattr(value, "download_and_prepare"):
            return value, module
    raise PrepareError(f"{BUILDERS[name]} defines no builder class for {name!r}.")


def _base_configs(builder_class: Any, module: ModuleType) -> dict[str, Any]:
    configs = builder_class.BUILDER_CONFIGS or [module.CONFIG]
    return {config.name: config for config in configs}


def _config(builder_class: Any, module: ModuleType, name: str, settings: Mapping[str, Any]) -> Any:
    """The builder config: the named one, or a copy of it with `settings` changed and a name of its own."""
    known = _base_configs(builder_class, module)
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


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PrepareError(f"Cannot write under {folder}: {error.strerror}. Choose another --data_dir.") from error
    path = folder.with_name(folder.name + ".lock")
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PrepareError(
                f"Another process is preparing this data set (it holds {path}). Wait for it to end."
            ) from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            for parent in (folder, *folder.parents[:3]):  # leave nothing behind that is empty
                with contextlib.suppress(OSError):
                    parent.rmdir()


def _same_settings(folder: Path, config: Any) -> None:
    now = config_dict(config)
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    built = json.loads((folder / "provenance.json").read_text())["config"]
    before = {**{key: defaults[key] for key in now if key in defaults}, **built}  # settings newer than the folder
    different = [key for key in {*before, *now} if before.get(key) != now.get(key)]
    if different:
        changes = "; ".join(
            f"{key}: built with {before.get(key)!r}, asked {now.get(key)!r}" for key in sorted(different)
        )
        raise PrepareError(
            f"{folder} was prepared with other settings ({changes}). "
            "Add --name <another name> to keep both, or --overwrite."
        )


def _build(builder_class: Any, config: Any, root: Path, folder: Path, staging: Staging) -> None:
    import tensorflow_datasets as tfds
    from absl import logging

    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()
    for leftover in folder.parent.glob(f"incomplete.*_{folder.name}"):
        shutil.rmtree(leftover, ignore_errors=True)
    if folder.exists():
        shutil.rmtree(folder)
    try:
        with contextlib.redirect_stdout(io.StringIO()), _same_bytes_every_time(), shuffling.bounded():
            builder = builder_class(data_dir=os.fspath(root), config=config, file_format="array_record")
            builder.staging = staging
            builder.download_and_prepare(download_dir=os.fspath(staging.directory / "downloads"))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
            raise _disk_full(root, staging) from error
        raise
    except RuntimeError as error:
        if "No space left" in str(error):
            raise _disk_full(root, staging) from error
        if isinstance(error.__cause__, concurrent.futures.process.BrokenProcessPool):
            raise PrepareError(str(error)) from error
        raise


@contextlib.contextmanager
def _same_bytes_every_time() -> Iterator[None]:
    """Records serialized with their fields in a fixed order; protobuf's own order differs from process to process."""
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    original = ExampleSerializer.serialize_example
    ExampleSerializer.serialize_example = lambda self, example: self.get_tf_example(example).SerializeToString(
        deterministic=True
    )
    try:
        yield
    finally:
        ExampleSerializer.serialize_example = original


def _disk_full(root: Path, staging: Staging) -> PrepareError:
    free = shutil.disk_usage(root).free / 2**20
    return PrepareError(
        f"The disk is full ({free:.0f} MiB free under {root}). Free some space and run the same command again: it "
        f"continues from the finished chunks in {staging.directory}. Or choose another --data_dir."
    )


def _splits(folder: Path) -> list[str]:
    info = json.loads((folder / "dataset_info.json").read_text())
    names = [split["name"] for split in info["splits"]]
    return sorted(names, key=lambda name: (SPLITS.index(name) if name in SPLITS else len(SPLITS), name))


def _listing(only: str = "") -> str:
    """The data sets, a line each; with the name of one, its configs and every setting with its default."""
    lines = [] if only else ["Data sets (python -m medvlp_jax.prepare <name> --<setting> <value> ...):"]
    for name in [only] if only else BUILDERS:
        try:
            builder_class, module = _load(name)
        except ImportError as error:
            lines.append(f"  {name}: not available ({error})")
            continue
        lines.append(f"  {name}: {(module.__doc__ or 'no description').strip().splitlines()[0]}")
        if only:
            for config in _base_configs(builder_class, module).values():
                lines.append(f"    {name}/{config.name}:")
                lines += [f"      --{k} {v!r}" for k, v in config_dict(config).items() if k != "name"]
    if not only:
        lines.append(
            "Settings of one: python -m medvlp_jax.prepare <name> --list. What they mean: tfds_builders/<name>/"
        )
        lines.append("What a build would take, before it starts: add --estimate.")
    return "\n".join(lines)


def _overrides(words: list[str]) -> dict[str, str]:
    """`--key value`, `--key=value` and `--config.key=value` -> {key: value}."""
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


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser("python -m medvlp_jax.prepare", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("name", nargs="?", help="data set, or data set/config; without it the data sets are listed")
    parser.add_argument("--data_dir", default="data", help="root of the prepared data sets (default: data)")
    parser.add_argument("--workers", type=int, help="processes (default: one per core)")
    parser.add_argument("--overwrite", action="store_true", help="build again what is there already")
    parser.add_argument("--list", action="store_true", help="list the data sets, or the settings of the one named")
    parser.add_argument("--estimate", action="store_true", help="say what a build would take, and build nothing")
    parser.add_argument("--keep_staging", action="store_true", help="keep the chunk files after success")
    parser.add_argument("--beam", action="store_true", help="make the records in an Apache Beam pipeline")
    parser.add_argument("--beam_options", default="", help='its options, e.g. --beam_options="--runner=DirectRunner"')
    known, rest = parser.parse_known_args(argv)
    try:
        if known.name is None or known.list:
            print(_listing((known.name or "").split("/")[0]))
            return 0
        if known.estimate:
            for line in estimate_build(known.name, known.data_dir, workers=known.workers, **_overrides(rest)):
                print(line)
            return 0
        prepare(
            known.name,
            known.data_dir,
            workers=known.workers,
            overwrite=known.overwrite,
            keep_staging=known.keep_staging,
            progress=sys.stderr.isatty(),
            beam=known.beam_options if known.beam or known.beam_options else None,
            **_overrides(rest),
        )
    except (PrepareError, ValueError, FileNotFoundError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted. Finished chunks are kept: run the same command again to continue.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
