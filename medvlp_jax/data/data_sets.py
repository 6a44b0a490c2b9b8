"""The data sets that can be prepared, and the command that prepares one."""

from __future__ import annotations

import difflib
import os

BUILDERS: dict[str, str] = {
    name: f"tfds_builders.{name}.{name}"
    for name in (
        "cxr_phantom",
        "image_report_folder",
        "mimic_cxr",
        "chexpert",
        "iu_xray",
        "padchest",
        "chestxray14",
        "rsna_pneumonia",
        "siim_pneumothorax",
        "vindr_cxr",
        "covidx",
        "object_cxr",
        "ms_cxr",
        "chest_imagenome",
        "chestx_det10",
        "tbx11k",
        "covid_rural",
        "montgomery_shenzhen",
    )
}
"""Data set -> module of its builder."""

_ARGUMENTS = {"cxr_phantom": "", "image_report_folder": " --manifest studies.csv"}


def prepare_command(name: str, data_dir: str | os.PathLike[str]) -> str:
    """The command line that prepares `name` ("mimic_cxr", "cxr_phantom/tiny"), with what it needs of the user."""
    base, _, config = name.partition("/")
    arguments = _ARGUMENTS.get(base, f" --root /path/to/{base}")
    own_name = f" --name {config}" if config and base != "cxr_phantom" else ""
    named = name if base == "cxr_phantom" else base
    return f"python -m medvlp_jax.prepare {named}{arguments}{own_name} --data_dir {os.fspath(data_dir)}"


def unknown(name: str) -> str:
    """ "" for a known data set; else words that say it is none, with the closest and all known ones."""
    base = name.split("/")[0]
    if base in BUILDERS:
        return ""
    close = difflib.get_close_matches(base, BUILDERS, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"Unknown data set {base!r}.{hint} Known: {', '.join(BUILDERS)}."
