"""Turn raw files into records:  python -m medvlp_jax.prepare <name>[/<config>] [--data_dir data] [--<setting>
<value> ...]

    python -m medvlp_jax.prepare                      # lists the data sets (--list)
    python -m medvlp_jax.prepare mimic_cxr --describe # access, every setting with its meaning, what is prepared
    python -m medvlp_jax.prepare mimic_cxr --root /data/mimic-cxr-jpg/2.1.0 --estimate    # what a build would take
    python -m medvlp_jax.prepare cxr_phantom          # rendered by the project itself, no download
    python -m medvlp_jax.prepare image_report_folder --name ours --manifest studies.csv --columns
    "image=path,report=report"
    python -m medvlp_jax.prepare cxr_phantom --verify # is it still what was built?

Each of them takes `--json FILE`, too. The built folder `<data_dir>/<name>/<config>/<version>/` holds the records and,
beside them, `counts.json` (what was built), `provenance.json` (settings and checksums of the inputs), `rejected.csv`
(every row left out, with its reason), `ids.csv` (raw ids, which records hold only hashed) and `SHA256SUMS`. A run that
is interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import concurrent.futures.process
import contextlib
import dataclasses
import errno
import fcntl
import io
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medvlp_jax.data import data_sets, describe_set, estimate, shuffling
from medvlp_jax.data.build_settings import PrepareError, base_configs, config_of, load, overrides
from medvlp_jax.data.data_sets import BUILDERS
from medvlp_jax.data.records import RecordSource, prepared_folder, split_order
from medvlp_jax.data.side_tables import count_all, json_text, table, write_json, write_rejected_and_ids
from medvlp_jax.data.staging import Staging, config_dict
from medvlp_jax.data.verify import verify, write_sums


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
    builder_class, module = load(name.split("/")[0])
    config = config_of(builder_class, module, name, settings)
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
        write_sums(folder, {"counts.json": json_text(counts)})
        write_json(folder / "counts.json", counts)  # last: marks the folder as finished
        if not keep_staging:
            staging.remove()
    print(table(counts))
    for line in extra:
        print(line)
    print(f"Prepared: {folder}")
    return folder


def estimate_build(name: str, /, **settings: Any) -> estimate.Estimate:
    """What `prepare` would take: images, bytes to read, seconds, disk; from a plan and a measured sample.

    Args: as of `prepare`. Raises: PrepareError for what the user can fix, ValueError for what the plan finds wrong.
    """
    builder_class, module = load(name.split("/")[0])
    config = config_of(builder_class, module, name, settings)
    return estimate.measure(module.plan(config), module.make_examples, config)


def verify_build(name: str, /, data_dir: str | os.PathLike[str] = "data", *, progress: bool = False) -> dict[str, Any]:
    """Compares a prepared set with what was recorded when it was built; see `data.verify.verify`.

    Raises: PrepareError for an unknown data set; FileNotFoundError or ValueError when it is not prepared.
    """
    if name.split("/")[0] not in BUILDERS:
        raise PrepareError(data_sets.unknown(name))
    return verify(Path(data_dir), name, prepared_folder(data_dir, name), progress)


def describe_build(name: str, /, data_dir: str | os.PathLike[str] = "data") -> dict[str, Any]:
    """What is known of a data set; see `data.describe_set.describe`. Raises: PrepareError for an unknown one."""
    name = name.split("/")[0]
    builder_class, module = load(name)
    return describe_set.describe(name, module, base_configs(builder_class, module), Path(data_dir))


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
    return split_order(split["name"] for split in info["splits"])


def _listing() -> dict[str, str]:
    """Data set -> its first line, or why it is not available."""
    found = {}
    for name in BUILDERS:
        try:
            found[name] = describe_set.summary(load(name)[1])
        except ImportError as error:
            found[name] = f"not available ({error})"
    return found


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser("python -m medvlp_jax.prepare", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("name", nargs="?", help="data set, or data set/config; without it the data sets are listed")
    parser.add_argument("--data_dir", default="data", help="root of the prepared data sets (default: data)")
    parser.add_argument("--workers", type=int, help="processes (default: one per core)")
    parser.add_argument("--overwrite", action="store_true", help="build again what is there already")
    parser.add_argument("--keep_staging", action="store_true", help="keep the chunk files after success")
    parser.add_argument("--beam", action="store_true", help="make the records in an Apache Beam pipeline")
    parser.add_argument("--beam_options", default="", help='its options, e.g. --beam_options="--runner=DirectRunner"')
    parser.add_argument("--json", type=Path, help="write what is told to this file, too")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--list", action="store_true", help="list the data sets")
    instead.add_argument("--describe", action="store_true", help="access, settings and builds of the one named")
    instead.add_argument("--estimate", action="store_true", help="say what a build would take, and build nothing")
    instead.add_argument("--verify", action="store_true", help="compare what is prepared with what was built")
    chosen, rest = parser.parse_known_args(argv)
    try:
        if chosen.json is not None and not chosen.json.absolute().parent.is_dir():  # before hours of work
            raise PrepareError(f"--json {chosen.json}: there is no folder {chosen.json.parent}.")
        told, status = _told(chosen, overrides(rest))
        if chosen.json is not None:
            write_json(chosen.json, told)
            print(chosen.json)
        return status
    except (PrepareError, ValueError, FileNotFoundError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted. Finished chunks are kept: run the same command again to continue.", file=sys.stderr)
        return 130


def _told(chosen: argparse.Namespace, settings: dict[str, str]) -> tuple[Any, int]:
    """Does what was asked and prints it. Returns the same for JSON, and the exit status."""
    name = chosen.name
    if name is None or chosen.list:
        if name is not None:
            raise PrepareError(f"--list takes no name; of {name} alone: python -m medvlp_jax.prepare {name} --describe")
        if settings or chosen.describe or chosen.estimate or chosen.verify:
            raise PrepareError("Which data set? Give its name first. They are listed by --list.")
        told = _listing()
        print("Data sets (python -m medvlp_jax.prepare <name> --<setting> <value> ...):")
        for known, summary in told.items():
            print(f"  {known}: {summary}")
        print("Access, settings and what they mean: python -m medvlp_jax.prepare <name> --describe")
        print("What a build would take, before it starts: add --estimate.")
        return told, 0
    if chosen.estimate:
        data_dir, workers = Path(chosen.data_dir), chosen.workers or os.cpu_count() or 1
        found = estimate_build(name, **settings)
        existing = next(folder for folder in (data_dir, *data_dir.absolute().parents) if folder.exists())
        print("\n".join(found.lines(workers, shutil.disk_usage(existing).free)))
        return {**dataclasses.asdict(found), **found.totals(workers)}, 0
    if chosen.describe or chosen.verify:
        name = "/".join(filter(None, (name, settings.pop("name", ""))))
        if settings:
            what = "--describe" if chosen.describe else "--verify"
            raise PrepareError(
                f"{what} takes no settings but --name; {', '.join(f'--{key}' for key in settings)} given."
            )
    if chosen.describe:
        told = describe_build(name, chosen.data_dir)
        print("\n".join(describe_set.lines(told)))
        return told, 0
    if chosen.verify:
        told = verify_build(name, chosen.data_dir, progress=sys.stderr.isatty())
        size = estimate.size_words(told["bytes"])
        counts = ", ".join(f"{count} {split}" for split, count in told["records"].items()) or "none"
        print(f"{told['folder']}: {told['files']} files, {size}; records read: {counts}")
        for problem in told["problems"]:
            print(f"WRONG  {problem}")
        print(f"Wrong: {len(told['problems'])}" if told["problems"] else "As it was built.")
        return told, int(bool(told["problems"]))
    folder = prepare(
        name,
        chosen.data_dir,
        workers=chosen.workers,
        overwrite=chosen.overwrite,
        keep_staging=chosen.keep_staging,
        progress=sys.stderr.isatty(),
        beam=chosen.beam_options if chosen.beam or chosen.beam_options else None,
        **settings,
    )
    parts = {
        part: json.loads((folder / f"{part}.json").read_text(encoding="utf-8")) for part in ("counts", "provenance")
    }
    return {"folder": str(folder), **parts}, 0


if __name__ == "__main__":
    sys.exit(main())
