"""Vectors of a frozen text tower, encoded once per distinct text and read back by memory map.

On disk, in one folder: `vectors-*.npy` float32 [N, E], `index-*.npy` (sorted 64-bit hashes of the texts and their
rows), and `meta.json`, which names both and is replaced in one move: whoever reads it sees a whole cache. No text is
stored.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from medvlp_jax.data.pipeline import Source
from medvlp_jax.data.sections import study_texts
from medvlp_jax.data.sentences import split_sentences

EncodeFn = Callable[[list[str]], NDArray[np.floating]]
Progress = Callable[[int, int], None]

_META = "meta.json"


def cache_key(params: Any = None, **settings: Any) -> str:
    """Hex digest of what decides a vector: the tower's parameters (a tree of arrays) and settings such as
    `tokenizer=tokenizer.fingerprint, max_len=256, pooling="cls"` (values that JSON can hold)."""
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=16)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)}{array.dtype}{array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8))
    return digest.hexdigest()


def section_texts(
    source: Source,
    policy: str,
    sections: Sequence[str] = ("findings", "impression"),
    *,
    report: Sequence[str] = (),
    sentences: bool = False,
) -> Iterator[str]:
    """The texts of every record, as the operation `sections(policy, report)` leaves them.

    Args: sections: which of findings, impression and report. report: see `sections.study_texts`. sentences: also every
      sentence of them, as the operation `sentence` may draw it.
    """
    for i in range(len(source)):
        texts = study_texts(source[i], policy, report)
        for section in sections:
            yield texts[section]
            if sentences:
                yield from split_sentences(texts[section])


class TextCache:
    """Read access to a finished cache; `TextCache.build` makes one, `TextCache.open` reopens it."""

    def __init__(self, directory: Path, meta: dict[str, Any]):
        try:
            self.directory, self.key, self.dim = directory, meta["key"], meta["dim"]
            self._meta = meta
            self._vectors_NxE = np.load(directory / meta["vectors"], mmap_mode="r", allow_pickle=False)
            self._hashes_N, self._rows_N = index_2xN = np.load(directory / meta["index"], allow_pickle=False)
            whole = self._vectors_NxE.shape == (meta["count"], self.dim) and index_2xN.shape == (2, meta["count"])
        except (EOFError, FileNotFoundError, KeyError, ValueError):
            whole = False
        if not whole:
            raise ValueError(f"The text cache in {directory} is damaged: delete the folder; the next run rebuilds it.")

    def __getstate__(self) -> dict[str, Any]:
        return {"directory": self.directory, "meta": self._meta}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["directory"], state["meta"])

    def __len__(self) -> int:
        return len(self._hashes_N)

    def __contains__(self, text: str) -> bool:
        return self._row(_hash(text)) is not None

    def _row(self, hash_: int) -> int | None:
        place = int(np.searchsorted(self._hashes_N, np.uint64(hash_)))
        found = place < len(self._hashes_N) and int(self._hashes_N[place]) == hash_
        return int(self._rows_N[place]) if found else None

    def lookup(self, text: str) -> NDArray[np.float32]:
        """The vector of one text, float32 [E], a copy.

        Raises KeyError for a text that was not encoded.
        """
        row = self._row(_hash(text))
        if row is None:
            raise KeyError(
                f"A text of {len(text)} characters is not among the {len(self)} of the text cache {self.directory}. "
                "Data or section policy differ from those it was built for: run TextCache.build over "
                f"section_texts(source, policy) again (it adds what is missing), or rm -r {self.directory} and restart."
            )
        return np.array(self._vectors_NxE[row])

    @classmethod
    def open(cls, directory: str | os.PathLike[str], key: str | None = None) -> TextCache:
        """Opens a finished cache.

        Args: key: what it must have been built with; None accepts any.
        Raises: FileNotFoundError when there is none; ValueError when its key differs or files are damaged.
        """
        directory = Path(directory)
        meta = _read_meta(directory)
        if meta is None:
            raise FileNotFoundError(f"No text cache in {directory}. Make one with TextCache.build.")
        if key is not None and meta["key"] != key:
            raise ValueError(
                f"The text cache in {directory} is stale: built with key {meta['key']}, needed {key} (other weights, "
                "tokenizer, length or pooling). TextCache.build replaces it."
            )
        return cls(directory, meta)

    @classmethod
    def build(
        cls,
        texts: Iterable[str],
        encode_fn: EncodeFn,
        dim: int,
        key: str,
        directory: str | os.PathLike[str],
        batch_size: int = 64,
        progress: Progress | None = None,
        *,
        process_index: int = 0,
        timeout_seconds: float = 6 * 3600,
    ) -> TextCache:
        """A cache that holds every one of `texts`: reused, extended, or rebuilt when its key is another.

        Args:
          texts: may repeat; the distinct ones are held in memory.
          encode_fn: list of exactly `batch_size` texts -> float [batch_size, dim]. Batches come sorted, longest texts
            first, so that padding to the longest of a batch wastes little and the largest batch is tried first.
          key: see `cache_key`.
          progress: called with (texts encoded, texts to encode).
          process_index: when several processes share the folder, 0 builds and the others wait for it. Processes with
            folders of their own each pass 0.

        Raises: ValueError for vectors of another shape or not finite; OSError when the disk is full; TimeoutError.
        """
        directory = Path(directory)
        wanted: dict[int, str] = {}
        for text in texts:
            if wanted.setdefault(_hash(text), text) != text:
                raise ValueError("Two texts share one 64-bit hash; the cache cannot hold both.")
        if process_index:
            return _wait(directory, key, wanted.keys(), timeout_seconds)
        old = _usable(directory, key, dim)
        missing = {h: text for h, text in wanted.items() if old is None or old._row(h) is None}
        if old is not None and not missing:
            return old
        order = sorted(missing, key=lambda h: (-len(missing[h]), h))
        batches = _encode([missing[h] for h in order], encode_fn, dim, batch_size, progress)
        try:
            _write(directory, key, dim, old, order, batches)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            size = (len(order) + (len(old) if old else 0)) * dim * 4
            raise OSError(
                error.errno, f"The disk of {directory} is full: the text cache needs {size / 1e9:.2f} GB there"
            ) from error
        return cls.open(directory, key)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _read_meta(directory: Path) -> dict[str, Any] | None:
    try:
        return json.loads((directory / _META).read_text())
    except FileNotFoundError:
        return None
    except json.JSONDecodeError as error:
        raise ValueError(f"{directory / _META} is damaged: delete the folder; the next run rebuilds it.") from error


def _usable(directory: Path, key: str, dim: int) -> TextCache | None:
    try:
        cache = TextCache.open(directory, key)
    except (ValueError, KeyError, OSError):  # none yet, another key, or damaged: build anew
        return None
    return cache if cache.dim == dim else None


def _wait(directory: Path, key: str, hashes: Iterable[int], timeout_seconds: float) -> TextCache:
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            cache = TextCache.open(directory, key)
            if all(cache._row(h) is not None for h in hashes):
                return cache
        except (ValueError, OSError):  # not there yet, or replaced while opening
            pass
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"Process 0 did not finish the text cache in {directory} within {timeout_seconds:.0f} s. If the folder "
                "is not shared between machines, let each machine build its own (process_index=0)."
            )
        time.sleep(min(1.0, timeout_seconds / 10))


def _encode(
    texts: list[str], encode_fn: EncodeFn, dim: int, batch_size: int, progress: Progress | None
) -> Iterator[NDArray[np.float32]]:
    for start in range(0, len(texts), batch_size):
        batch = texts[start : start + batch_size]
        # A short last batch is filled up: one shape, one compilation.
        vectors = np.asarray(encode_fn(batch + batch[-1:] * (batch_size - len(batch))), np.float32)
        if vectors.shape != (batch_size, dim):
            raise ValueError(f"encode_fn returned shape {vectors.shape}; expected ({batch_size}, {dim}).")
        if not np.isfinite(vectors).all():
            raise ValueError(f"encode_fn returned NaN or infinity in texts {start} to {start + len(batch) - 1}.")
        yield vectors[: len(batch)]
        if progress:
            progress(start + len(batch), len(texts))


def _write(
    directory: Path,
    key: str,
    dim: int,
    old: TextCache | None,
    hashes: list[int],
    batches: Iterator[NDArray[np.float32]],
) -> None:
    """Old vectors, then new ones, under fresh names; then the new `meta.json`; then the old files go."""
    directory.mkdir(parents=True, exist_ok=True)
    kept = len(old) if old else 0
    count = kept + len(hashes)
    if shutil.disk_usage(directory).free < count * dim * 4:
        raise OSError(errno.ENOSPC, "not enough space")
    token = secrets.token_hex(4)
    meta = {"key": key, "dim": dim, "count": count, "vectors": f"vectors-{token}.npy", "index": f"index-{token}.npy"}
    written = [directory / meta["vectors"], directory / meta["index"], directory / f"{_META}-{token}"]
    replaced = _read_meta_or_none(directory)
    try:
        with written[0].open("wb") as file:
            # Plain writes: a memory map on a full disk would end the process instead of raising.
            header = {"descr": "<f4", "fortran_order": False, "shape": (count, dim)}
            np.lib.format.write_array_header_1_0(file, header)
            for start in range(0, kept, 4096):
                file.write(np.ascontiguousarray(old._vectors_NxE[start : start + 4096], "<f4").tobytes())
            for vectors in batches:
                file.write(vectors.astype("<f4").tobytes())
            _flush(file)
        all_hashes = np.concatenate([old._hashes_N if old else np.zeros(0, np.uint64), np.array(hashes, np.uint64)])
        all_rows = np.concatenate([old._rows_N if old else np.zeros(0, np.uint64), np.arange(kept, count)])
        order = np.argsort(all_hashes)
        with written[1].open("wb") as file:
            np.save(file, np.stack([all_hashes[order], all_rows[order].astype(np.uint64)]), allow_pickle=False)
            _flush(file)
        with written[2].open("w") as file:
            json.dump(meta, file)
            _flush(file)
        written[2].replace(directory / _META)
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    for name in ("vectors", "index") if replaced else ():
        (directory / str(replaced.get(name))).unlink(missing_ok=True)


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _read_meta_or_none(directory: Path) -> dict[str, Any] | None:
    try:
        return _read_meta(directory)
    except ValueError:
        return None
