"""Export a run:  python -m medvlp_jax.export --workdir runs/demo --out exports/demo --check

Writes the image trunk and the heads as safetensors under PyTorch names with a plain PyTorch loader, the text tower as a
transformers folder, preprocessing, an ONNX image embedder (extra `onnx`) and a model card. No pickle is written.
"""

import argparse
import sys

from safetensors import SafetensorError

from medvlp_jax.checkpoint import CheckpointError
from medvlp_jax.export.write import ExportError, export


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser("python -m medvlp_jax.export", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--workdir", required=True, help="run folder")
    parser.add_argument("--out", help="folder to write (default: <workdir>/export)")
    parser.add_argument("--step", type=int, help="checkpoint (default: the newest)")
    parser.add_argument("--data_dir", help="where data and text towers are, when they moved since training")
    parser.add_argument("--check", action="store_true", help="compare the result with JAX (needs the extra torch)")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export in --out")
    args = vars(parser.parse_args(argv))
    try:
        export(args.pop("workdir"), args.pop("out"), **args)
    except (ValueError, OSError, ImportError, CheckpointError, ExportError, SafetensorError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted; --out holds a whole export or what it held before.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
