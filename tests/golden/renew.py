"""Rewrites the config dumps beside this file: python tests/golden/renew.py"""

import importlib
import json
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
# File name -> config and its argument.
DUMPS = {
    "imitate_folder_small": ("imitate", "data=image_report_folder,small"),
    "imitate_demo_released": ("imitate", "demo,preset=released"),
    "convirt_mgca_variant": ("convirt", "preset=mgca_variant"),
    "hierarchical_local": ("hierarchical_local", ""),
    "hierarchical_local_demo": ("hierarchical_local", "demo"),
    "clip_vit": ("clip", "preset=vit"),
    "siglip_demo_vit": ("siglip", "demo,preset=vit"),
    "mgca_released_vit": ("mgca", "preset=released_vit"),
    "mgca_demo_vit": ("mgca", "demo,preset=vit"),
    **{
        f"{name}{suffix}": (name, argument)
        for name in ("clip", "convirt", "gloria", "imitate", "lovt", "m_flag", "mgca", "siglip")
        for suffix, argument in (("", ""), ("_released", "preset=released"), ("_demo", "demo"))
    },
}


def dump(name, argument):
    """The flat config as the text of a golden file."""
    from medvlp_jax import config

    method = importlib.import_module(f"configs.{name}")
    return json.dumps(config.flat(method.get_config(argument)), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    sys.path.insert(0, str(FOLDER.parents[1]))
    for file, arguments in DUMPS.items():
        (FOLDER / f"{file}.json").write_text(dump(*arguments), encoding="utf-8")
        print(FOLDER / f"{file}.json")
