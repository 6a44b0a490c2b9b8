"""Train or evaluate:  python -m medvlp_jax.main --config configs/imitate.py:demo --workdir runs/demo [--mode eval]

Fields of the config are overridden as --config.batch_size=64. The same command resumes an interrupted run.
Exit codes: 0 done; 2 an error that trying again does not help, named in one line; 69 another process of the run did
not come in time; 75 stopped by a signal with its checkpoint saved, to be started again; anything else is a crash.
`launch/supervise.py` goes by them.
"""

import shlex
import sys
import time

from absl import app, flags, logging
from ml_collections import config_flags

NAMED_ERROR, STOPPED = 2, 75
_STARTED = time.time()  # before anything slow is imported: start-up is part of the run's account

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, with arguments: configs/imitate.py:demo")
_WORKDIR = flags.DEFINE_string("workdir", None, "Run folder: made when missing, resumed when not.")
_CHECKPOINTS = flags.DEFINE_string("checkpoints", None, "With --mode eval: 'all', or steps such as 400,800.")
_MODE = flags.DEFINE_enum("mode", "train", ["train", "eval"], "train, or eval: score the newest checkpoint.")


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.WARNING)
    from medvlp_jax import host_memory

    if host_memory.cpu_only():
        host_memory.keep_freed_memory()
    from medvlp_jax.checkpoint import CheckpointError, disk_full
    from medvlp_jax.metrics import NonFiniteError

    try:
        if _MODE.value == "train":
            from medvlp_jax.train import train

            command = f"python -m medvlp_jax.main {shlex.join(sys.argv[1:])}"
            if train(_CONFIG.value, _WORKDIR.value, command=command, started=_STARTED)["stopped"]:
                sys.exit(STOPPED)
        else:
            from medvlp_jax.evaluate import evaluate

            evaluate(_CONFIG.value, _WORKDIR.value, checkpoint_steps=_steps(_CHECKPOINTS.value))
    except (ValueError, FileNotFoundError, CheckpointError, NonFiniteError) as error:
        logging.vlog(1, "%s", error, exc_info=True)
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(NAMED_ERROR)
    except OSError as error:  # of metrics and logs; checkpoints name theirs
        if not disk_full(error):
            raise
        where = f"{_WORKDIR.value}: no space left on the device"
        print(
            f"OSError: {where}. Free space, lower keep_checkpoints, or move the run folder. "
            "Earlier checkpoints are intact; the same command resumes.",
            file=sys.stderr,
        )
        sys.exit(NAMED_ERROR)


def _steps(text):
    if text is None or text == "all":
        return None if text is None else ()
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--checkpoints={text!r} must be 'all' or whole numbers with commas between them.") from None


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
