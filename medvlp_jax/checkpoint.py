"""Checkpoints of a run: Orbax, asynchronous, atomic, with what a resume must know beside the arrays."""

import contextlib
import errno
import itertools
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

# What a finished local step folder holds. A copy or a deletion that was cut short leaves some of it out.
PARTS = ("_CHECKPOINT_METADATA", "meta/metadata", "state/_METADATA")


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, read, or does not belong to this model."""


class Checkpoints:
    """The `checkpoints/` folder of a run.

    Each step holds `state` (any pytree of arrays, restored onto the shardings it is asked for, so another device count
    is fine) and `meta` (a small JSON dict: data position as a global example count, clock, method, sizes).

    Args:
      folder: created when missing.
      keep: number of newest steps that stay. None opens the folder for reading only and changes nothing in it, so that
        a run may be looked at while it writes; opened for writing, leftovers of unfinished saves are cleared away.
    Raises: ValueError for `keep` below 1.
    """

    def __init__(self, folder: str | Path, *, keep: int | None = None):
        if keep is not None and keep < 1:
            raise ValueError(f"keep_checkpoints={keep} would keep none. Use 1 or more.")
        self.folder = epath.Path(folder)
        self._remote = "://" in str(folder)
        self._keep = keep
        self._manager: ocp.CheckpointManager | None = None

    def _open(self) -> ocp.CheckpointManager:
        if self._manager is None:
            writes = self._keep is not None
            if writes and jax.process_index() == 0:
                self._set_unfinished_aside()
            options = ocp.CheckpointManagerOptions(
                max_to_keep=self._keep,
                create=writes,
                enable_async_checkpointing=True,
                cleanup_tmp_directories=writes,
            )
            self._manager = ocp.CheckpointManager(
                self.folder if self._remote else self.folder.resolve(),
                options=options,
                item_handlers={"state": ocp.PyTreeCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()},
            )
        return self._manager

    def latest_step(self) -> int | None:
        """The newest complete step, or None."""
        return max(self.all_steps(), default=None)

    def all_steps(self) -> list[int]:
        """Complete steps, oldest first."""
        if self._keep is None and not self.folder.exists():
            return []
        return sorted(step for step in self._open().all_steps() if self._complete(step))

    def choose(self, step: int | None = None) -> int:
        """`step` when it is there, the newest when None. Raises: FileNotFoundError listing the known steps."""
        known = self.all_steps()
        number = step if step is not None else max(known, default=None)
        if number is None or number not in known:
            shown = ", ".join(map(str, known)) or "none"
            what = "no checkpoint yet" if number is None else f"no checkpoint of step {number}. Known steps: {shown}"
            raise FileNotFoundError(f"{self.folder} holds {what}.")
        return number

    def _complete(self, step: int) -> bool:
        # Object stores have no atomic renames: there Orbax itself leaves out what was not committed.
        return self._remote or all((self.folder / str(step) / part).exists() for part in PARTS)

    def _set_unfinished_aside(self) -> None:
        if self._remote or not self.folder.exists():
            return
        for path in self.folder.iterdir():
            if path.name.isdigit() and not self._complete(int(path.name)):
                aside = next(name for n in itertools.count() if not (name := _aside(path, n)).exists())
                path.rename(aside)
                logging.warning("Checkpoint %s is not complete; it is now called %s and not used.", path, aside.name)

    def save(self, step: int, state: Any, meta: dict[str, Any]) -> None:
        """Starts writing `step`; returns once the arrays are copied, the rest happens in the background.

        A step that is there already stays as it is.

        Raises: CheckpointError when the disk is full or not writable, also for a save that started earlier; when the
          folder is open for reading only, or holds a later step.
        """
        if self._keep is None:
            raise CheckpointError(f"{self.folder} is open for reading only. Use Checkpoints(folder, keep=3) to save.")
        manager = self._open()
        if step in manager.all_steps():
            return
        try:
            started = manager.save(
                step,
                args=ocp.args.Composite(state=ocp.args.PyTreeSave(state), meta=ocp.args.JsonSave(meta)),
            )
        except Exception as error:
            raise self._write_error(step, error) from error
        if not started:
            raise CheckpointError(
                f"The checkpoint of step {step} was not written: {self.folder} holds the later step "
                f"{manager.latest_step()}. Use another --workdir, or remove the later steps."
            )

    def wait(self) -> None:
        """Blocks until everything is on disk. Raises: CheckpointError as `save`."""
        try:
            self._open().wait_until_finished()
        except Exception as error:
            raise self._write_error(None, error) from error

    def reached_preemption(self, step: int) -> bool:
        """True when all processes of a multi-process job agree that one was told to stop (SIGTERM, maintenance)."""
        return self._open().reached_preemption(step)

    def meta(self, step: int) -> dict[str, Any]:
        """The JSON part of a step. Raises: CheckpointError when the step is not there or not readable."""
        return self._read(step, meta=ocp.args.JsonRestore()).meta

    def restore(self, step: int, target: Any) -> Any:
        """The state of `step`, in the structure, dtypes and shardings of `target` (arrays or ShapeDtypeStructs).

        Raises: CheckpointError naming the entries that differ when the checkpoint holds another model, or when the step
          is not there or not readable.
        """
        self._check_structure(step, target)
        args = ocp.args.PyTreeRestore(item=target, restore_args=ocp.checkpoint_utils.construct_restore_args(target))
        return self._read(step, state=args).state

    def restore_partial(self, step: int, target: Any) -> Any:
        """As `restore`, for a target that names only some of the entries (parameters without optimizer, say)."""
        self._check_structure(step, target, partial=True)
        args = ocp.args.PyTreeRestore(
            item=target,
            restore_args=ocp.checkpoint_utils.construct_restore_args(target),
            partial_restore=True,
        )
        return self._read(step, state=args).state

    def restore_arrays(self, step: int) -> Any:
        """The whole state of `step` as nested dicts of NumPy arrays, without a model: to inspect or convert it."""
        stored = self._tree(step)
        args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), stored)
        return self._read(step, state=ocp.args.PyTreeRestore(restore_args=args)).state

    def close(self) -> None:
        """Waits for pending saves and releases the folder."""
        if self._manager is not None:
            self.wait()
            self._manager.close()
            self._manager = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        """Closes; on the way out of an error, a save that fails as well does not hide it."""
        with contextlib.suppress(CheckpointError) if kind else contextlib.nullcontext():
            self.close()

    def _check_structure(self, step: int, target: Any, partial: bool = False) -> None:
        stored = _shapes(self._tree(step))
        wanted = _shapes(target)
        missing = sorted(set(wanted) - set(stored))
        extra = [] if partial else sorted(set(stored) - set(wanted))
        differ = [
            f"{k}: checkpoint {stored[k]}, model {wanted[k]}"
            for k in sorted(set(stored) & set(wanted))
            if stored[k] != wanted[k]
        ]
        if missing or extra or differ:
            lines = [f"The checkpoint at step {step} in {self.folder} holds another model than the config describes."]
            for title, names in (
                ("not in the checkpoint", missing),
                ("not in the model", extra),
                ("other shape", differ),
            ):
                if names:
                    shown = "; ".join(names[:5]) + (f"; and {len(names) - 5} more" if len(names) > 5 else "")
                    lines.append(f"  {title} ({len(names)}): {shown}")
            lines.append("Use the config the run was started with (config.json in its folder), or another --workdir.")
            raise CheckpointError("\n".join(lines))

    def _tree(self, step: int) -> Any:
        self._require(step)
        try:
            stored = self._open().item_metadata(step).state
        except Exception as error:
            raise self._read_error(step, error) from error
        return getattr(stored, "tree", stored)

    def _require(self, step: int) -> None:
        known = self.all_steps()
        if step not in known:
            shown = ", ".join(map(str, known)) or "none"
            raise CheckpointError(f"{self.folder} holds no complete checkpoint of step {step}. Known steps: {shown}.")

    def _read(self, step: int, **args: Any) -> Any:
        self._require(step)
        try:
            return self._open().restore(step, args=ocp.args.Composite(**args))
        except Exception as error:
            raise self._read_error(step, error) from error

    def _read_error(self, step: int, error: BaseException) -> CheckpointError:
        earlier = [known for known in self.all_steps() if known < step]
        advice = f"Remove that folder to go on from step {earlier[-1]}." if earlier else "No earlier step is left."
        return CheckpointError(
            f"The checkpoint {self.folder / str(step)} cannot be read: {type(error).__name__}: {error}\n{advice}"
        )

    def _write_error(self, step: int | None, error: BaseException) -> CheckpointError:
        which = "A checkpoint" if step is None else f"The checkpoint of step {step}"
        if disk_full(error):
            return CheckpointError(
                f"{which} could not be written to {self.folder}: no space left on the device. Free space, lower "
                "keep_checkpoints, or move the run folder. Earlier checkpoints are intact; the same command resumes."
            )
        return CheckpointError(f"{which} could not be written to {self.folder}: {type(error).__name__}: {error}")


def disk_full(error: BaseException | None) -> bool:
    """True when `error` or anything it came from says that the device is full (errno or message)."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if re.search(r"no space left|disk quota exceeded|RESOURCE_EXHAUSTED.*space", str(error), re.IGNORECASE):
            return True
        error = error.__cause__ or error.__context__
    return False


def _aside(path: epath.Path, number: int) -> epath.Path:
    return path.with_name(f"{path.name}.unfinished" + (f".{number}" if number else ""))


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    flat = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))[0]
    names = {}
    for path, leaf in flat:
        if hasattr(leaf, "shape"):
            key = "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)
            names[key] = tuple(leaf.shape)
    return names
