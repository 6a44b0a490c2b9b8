"""The one shape of a record, and random access to records on disk without TensorFlow.

Every builder under `tfds_builders/` writes `features()`; every reader uses `RecordSource`. Files are ArrayRecord in
the layout of TensorFlow Datasets: `<data_dir>/<name>/[<config>/]<version>/`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medvlp_jax.data import data_sets
from medvlp_jax.data.demographics import UNKNOWN_AGE
from medvlp_jax.data.labels import CHEXPERT_LABELS

SPLITS = ("train", "validation", "test")
SOURCE = "_source"
"""Key under which a builder may add {"patient_id", "study_id", "image_id": raw str, "sha256", "file", "doubts"} to an
example: it goes to the side table `ids.csv`, never into the record. Its "facts", a list of slugs, are counted."""

_reading_process: int | None = None  # the one process in which the C++ reader has been used
_TEXT = ("findings", "impression", "report", "view", "sex")
_TEXTS = (*_TEXT, "sentences", "boxes/finding", "masks/finding", "own_labels/name")
_IDS = ("patient_id", "study_id", "image_id")
_FLAGS = ("has_findings", "has_impression", "public")


def features() -> Any:
    """The `tfds.features.FeaturesDict` that every record has.

    Images are handed over as encoded bytes (grey PNG or JPEG); text is UTF-8, "" when absent; `labels` is int8 (14,)
    in the order of `labels.CHEXPERT_LABELS`; `own_labels` are those of the set in its own words; `age` is in years, 90
    for 90 and more, -1 unknown; `sex` is F, M, O or ""; ids are `hashed_id`s; boxes are [ymin, xmin, ymax, xmax] in
    0..1. A phrase and its boxes: `sentence` is its place in `sentences`.
    """
    import tensorflow_datasets as tfds

    f = tfds.features
    return f.FeaturesDict(
        {
            "image": f.Image(shape=(None, None, 1), dtype=np.uint8, encoding_format="png"),
            "findings": f.Text(),
            "impression": f.Text(),
            "report": f.Text(),
            "has_findings": f.Scalar(np.bool_),
            "has_impression": f.Scalar(np.bool_),
            "sentences": f.Sequence(f.Text()),
            "labels": f.Tensor(shape=(len(CHEXPERT_LABELS),), dtype=np.int8),
            "own_labels": f.Sequence({"name": f.Text(), "state": np.int8}),
            "view": f.Text(),
            "age": f.Scalar(np.int32),
            "sex": f.Text(),
            "patient_id": f.Scalar(np.int64),
            "study_id": f.Scalar(np.int64),
            "image_id": f.Scalar(np.int64),
            "boxes": f.Sequence(
                {"box": f.Tensor(shape=(4,), dtype=np.float32), "finding": f.Text(), "sentence": np.int32}
            ),
            "masks": f.Sequence({"mask": f.Text(), "finding": f.Text()}),
            "lung_mask": f.Text(),
            "public": f.Scalar(np.bool_),
        }
    )


def dataset_info(builder: Any, description: str) -> Any:
    """For a builder's `_info`: the `tfds.core.DatasetInfo` with `features()`."""
    import tensorflow_datasets as tfds

    # Our builders download nothing. TFDS would look for a checksum file with `importlib_resources`, which it does not
    # declare as a dependency.
    type(builder).url_infos = None
    return tfds.core.DatasetInfo(builder=builder, description=description, features=features())


def example(
    *,
    image: bytes,
    patient_id: str,
    study_id: str,
    image_id: str,
    findings: str = "",
    impression: str = "",
    report: str = "",
    sentences: list[str] | None = None,
    labels: np.ndarray | None = None,
    own_labels: Mapping[str, int] | None = None,
    view: str = "",
    age: int = UNKNOWN_AGE,
    sex: str = "",
    boxes: list[dict[str, Any]] | None = None,
    masks: list[dict[str, Any]] | None = None,
    lung_mask: bytes = b"",
    public: bool = False,
    source: dict[str, str] | None = None,
) -> dict[str, Any]:
    """One example as a builder yields it, with every field filled; raw ids are hashed here and kept in the side table.

    Args: image: encoded PNG or JPEG, grey. patient_id, study_id, image_id: raw ids. labels: int8 (14,), default all -2.
      own_labels: {name: 1, 0, -1}. age, sex: see `demographics`. boxes: [{"box": [ymin, xmin, ymax, xmax] in 0..1,
      "finding": str, "sentence": int or -1}]. masks: [{"mask": PNG bytes, "finding": str}]. source: more columns for
      `ids.csv` ("sha256", "file").
    """
    return {
        "image": image,
        "findings": findings,
        "impression": impression,
        "report": report,
        "has_findings": bool(findings.strip()),
        "has_impression": bool(impression.strip()),
        "sentences": list(sentences or []),
        "labels": np.full(len(CHEXPERT_LABELS), -2, np.int8) if labels is None else np.asarray(labels, np.int8),
        "own_labels": [{"name": name, "state": int(state)} for name, state in (own_labels or {}).items()],
        "view": view,
        "age": int(age),
        "sex": sex,
        "patient_id": hashed_id(patient_id),
        "study_id": hashed_id(study_id),
        "image_id": hashed_id(image_id),
        "boxes": [{**box, "box": np.asarray(box["box"], np.float32)} for box in boxes or []],
        "masks": list(masks or []),
        "lung_mask": lung_mask,
        "public": bool(public),
        SOURCE: {"patient_id": patient_id, "study_id": study_id, "image_id": image_id, **(source or {})},
    }


def hashed_id(raw: str) -> int:
    """Raw id -> the first 8 bytes of its BLAKE2b digest as a signed (big-endian) 64-bit integer."""
    return int.from_bytes(hashlib.blake2b(str(raw).encode()).digest()[:8], "big", signed=True)


def text_hash(text: str) -> int:
    """31-bit hash (0 .. 2**31 - 1) of the lower-cased text with white space collapsed: equal texts, equal hashes."""
    words = " ".join(text.lower().split())
    return int.from_bytes(hashlib.blake2b(words.encode("utf-8", "replace")).digest()[:4], "big") & 0x7FFFFFFF


def prepared_folder(data_dir: str | os.PathLike[str], name: str) -> Path:
    """The folder of the newest version of a prepared data set.

    Args: name: "cxr_phantom", or "cxr_phantom/<config>"; without a config, the only one, or the one called "default".
    Raises: FileNotFoundError with the command that prepares it; ValueError when several configs are there.
    """
    root = Path(data_dir)
    for part in name.split("/"):
        root = root / part
    patterns = ["*/dataset_info.json"] if "/" in name else ["*/dataset_info.json", "*/*/dataset_info.json"]
    by_parent: dict[Path, list[Path]] = {}
    for pattern in patterns:
        for info in root.glob(pattern):
            if _version(info.parent.name):
                by_parent.setdefault(info.parent.parent, []).append(info.parent)
    if not by_parent:
        advice = data_sets.unknown(name) or f"Prepare it with: {data_sets.prepare_command(name, data_dir)}"
        raise FileNotFoundError(f"The data set {name!r} is not prepared under {os.fspath(data_dir)!r}. {advice}")
    if len(by_parent) > 1 and root / "default" in by_parent:
        by_parent = {root / "default": by_parent[root / "default"]}
    if len(by_parent) > 1:
        known = ", ".join(sorted(f"{name}/{parent.name}" if parent != root else name for parent in by_parent))
        raise ValueError(
            f"Several configs of {name!r} are prepared under {os.fspath(data_dir)!r}; choose one of: {known}."
        )
    (versions,) = by_parent.values()
    return max(versions, key=lambda folder: _version(folder.name))


def prepared_splits(data_dir: str | os.PathLike[str], name: str) -> list[str]:
    """The splits of a prepared data set. Raises: as `prepared_folder`."""
    info = json.loads((prepared_folder(data_dir, name) / "dataset_info.json").read_text(encoding="utf-8"))
    return [split["name"] for split in info["splits"]]


def split_order(names: Iterable[str]) -> list[str]:
    """Names of splits, the usual ones first and in their usual order."""
    return sorted(names, key=lambda name: (SPLITS.index(name) if name in SPLITS else len(SPLITS), name))


def _version(text: str) -> tuple[int, ...]:
    match = re.fullmatch(r"(\d+)\.(\d+)\.(\d+)", text)
    return tuple(int(number) for number in match.groups()) if match else ()


class RecordSource:
    """Random access to the records of one split: `len(source)`, `source[i]`.

    A record is a dict: `image` and `lung_mask` encoded bytes; text as str; `sentences` list of str; `labels` int8
    (14,); `own_labels` = {"name": N str, "state": int8 (N,)}; `age` int, -1 unknown; ids int64 and flags bool scalars;
    `boxes` = {"box": float32 (N, 4), "finding": N str, "sentence": int32 (N,)}; `masks` = {"mask": list of PNG bytes,
    "finding": list of str}. Files are opened by the first read, so a source may be pickled, sent to spawned workers,
    forked before that read, and read from several threads.

    Args: data_dir: root of the prepared data sets. name: data set, or data set/config. split: "train", "validation",
      "test", or a slice such as "train[:10%]".
    Raises: FileNotFoundError naming the prepare command; ValueError listing the splits that exist.
    """

    def __init__(self, data_dir: str | os.PathLike[str], name: str, split: str = "train"):
        self.data_dir, self.name, self.split = os.fspath(data_dir), name, split
        self.folder = prepared_folder(data_dir, name)
        self._lock = threading.Lock()
        self._opened: Any = self._open()
        self._length = len(self._opened)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def __repr__(self) -> str:
        return f"RecordSource({self.data_dir!r}, {self.name!r}, {self.split!r})"

    def __len__(self) -> int:
        return self._length

    def _records(self) -> Any:
        global _reading_process
        if _reading_process != os.getpid():
            if _reading_process is not None:
                raise RuntimeError(
                    "This process was forked from one that had already read records, and the threads of ArrayRecord "
                    "do not survive a fork. Start worker processes with the method 'spawn', as Grain does, or "
                    "read the first record after forking."
                )
            _reading_process = os.getpid()
        if self._opened is None:
            with self._lock:
                if self._opened is None:
                    self._opened = self._open()
        return self._opened

    def _open(self) -> Any:
        import tensorflow_datasets as tfds

        builder = tfds.builder_from_directory(os.fspath(self.folder))
        base = self.split.split("[")[0]
        if base not in builder.info.splits:
            raise ValueError(f"{self.name!r} has no split {base!r}; it has: {', '.join(sorted(builder.info.splits))}.")
        return builder.as_data_source(split=self.split)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = int(index)
        if not -self._length <= index < self._length:
            raise IndexError(f"Record {index} of {self!r}, which has {self._length} records.")
        return parse(self._records().data_source[index % self._length])


def parse(data: bytes) -> dict[str, Any]:
    """One stored record (a serialized `tf.train.Example` of `features()`) as `RecordSource` gives it.

    Read directly: the parser of TFDS, made for any features, takes ten times as long. Fields that sets prepared by
    earlier versions lack (age, sex, own_labels) are unknown or empty.
    Raises: ValueError for a record without an image.
    """
    from tensorflow_datasets.proto import tf_example_pb2

    feature = tf_example_pb2.Example.FromString(data).features.feature  # a missing name reads as an empty list
    texts = {name: [value.decode("utf-8") for value in feature[name].bytes_list.value] for name in _TEXTS}
    bytes_of = {name: list(feature[name].bytes_list.value) for name in ("image", "lung_mask", "masks/mask")}
    numbers = {name: feature[name].int64_list.value for name in (*_IDS, *_FLAGS, "age")}
    if not bytes_of["image"]:
        raise ValueError(f"a record of {len(data)} bytes has no image: it was not prepared by medvlp_jax.prepare")
    return {
        "image": bytes_of["image"][0],
        "lung_mask": (bytes_of["lung_mask"] or [b""])[0],
        **{name: (texts[name] or [""])[0] for name in _TEXT},
        "sentences": texts["sentences"],
        "labels": np.array(feature["labels"].int64_list.value, np.int8),
        **{name: numbers[name][0] for name in _IDS},
        **{name: bool(numbers[name][0]) for name in _FLAGS},
        "age": numbers["age"][0] if numbers["age"] else UNKNOWN_AGE,
        "boxes": {
            "box": np.array(feature["boxes/box"].float_list.value, np.float32).reshape(-1, 4),
            "finding": texts["boxes/finding"],
            "sentence": np.array(feature["boxes/sentence"].int64_list.value, np.int32),
        },
        "masks": {"mask": bytes_of["masks/mask"], "finding": texts["masks/finding"]},
        "own_labels": {
            "name": texts["own_labels/name"],
            "state": np.array(feature["own_labels/state"].int64_list.value, np.int8),
        },
    }
