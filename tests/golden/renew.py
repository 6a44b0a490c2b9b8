"""Rewrites the config dumps beside this file: python tests/golden/renew.py"""

import json
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
# File name -> argument of configs/imitate.py.
ARGUMENTS = {
    "imitate": "",
    "imitate_released": "preset=released",
    "imitate_demo": "demo",
    "imitate_demo_released": "demo,preset=released",
    "imitate_folder_small": "data=image_report_folder,small",
}


def dump(argument):
    """The flat config as the text of a golden file."""
    from configs import imitate
    from medvlp_jax import config

    return json.dumps(config.flat(imitate.get_config(argument)), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    sys.path.insert(0, str(FOLDER.parents[1]))
    for name, argument in ARGUMENTS.items():
        (FOLDER / f"{name}.json").write_text(dump(argument), encoding="utf-8")
        print(FOLDER / f"{name}.json")
