"""Reports of runs:  python -m medvlp_jax.report RUN [RUN ...] [--out FILE] [--data_dir D] [--no-pictures]

Writes RUN/report.html for each run and, for several, a comparison. Each file is complete in itself: it opens from
disk, without a network.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from medvlp_jax.report.page import COMPARISON, write_report


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 1 with one line on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m medvlp_jax.report", description="Reports of runs as self-contained HTML files."
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder")
    parser.add_argument(
        "--out", type=Path, help=f"file to write; default RUN/report.html, or {COMPARISON} here for several runs"
    )
    parser.add_argument("--data_dir", type=Path, help="where prepared data is, when it moved since training")
    parser.add_argument(
        "--no-pictures", dest="pictures", action="store_false", help="neither test images nor embedding map"
    )
    chosen = parser.parse_args(arguments)
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    try:
        path = write_report(chosen.runs, chosen.out, data_dir=chosen.data_dir, pictures=chosen.pictures)
    except (ValueError, FileNotFoundError) as error:
        print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
