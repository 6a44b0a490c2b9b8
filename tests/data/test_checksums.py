"""Published checksums: images that differ are refused and counted, tables stop the build."""

import hashlib
import json

import pytest

pytest.importorskip("tensorflow_datasets")

from medvlp_jax import prepare
from medvlp_jax.data.checksums import Checksums
from tfds_builders.mimic_cxr import make_dummy_data, mimic_cxr
from tfds_builders.testing import make


def write_sums(root, leave_out=()):
    """As PhysioNet writes the list; the text files of reports are not in that of MIMIC-CXR-JPG."""
    files = sorted(path for path in root.rglob("*") if path.is_file() and path.suffix != ".txt")
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()} {path.relative_to(root)}" for path in files]
    lines = [line.replace(" ", "  " if n % 2 else " *", 1) for n, line in enumerate(lines)]
    text = "\n".join(line for line in lines if not any(name in line for name in leave_out))
    (root / "SHA256SUMS.txt").write_text(text + "\n")
    return str(root / "SHA256SUMS.txt")


def test_files_that_are_not_what_was_published(tmp_path, capsys, monkeypatch):
    root = tmp_path / "mimic"
    make_dummy_data.write(root)
    names = [make_dummy_data.dicom_id(number) for number in (0, 2, 10)]
    sums = write_sums(root, leave_out=names[1:2])
    settings = dict(root=str(root), size=16, checksums=sums)
    before = make(mimic_cxr, root=str(root), size=16)
    made = make(mimic_cxr, **settings)
    assert (made.counts, made.reasons) == (before.counts, before.reasons)
    for name in names:  # still whole images, but other ones
        (path,) = root.rglob(f"{name}.jpg")
        path.write_bytes(path.read_bytes() + b"\0")
    command = ["mimic_cxr", "--root", str(root), "--size=16", "--checksums", sums, "--data_dir", str(tmp_path)]
    assert prepare.main([*command, "--workers=1"]) == 0
    printed = capsys.readouterr().out
    assert "wrong_checksum: 2" in printed
    assert "Checksums: images listed 10, images not listed 1" in printed
    counts = json.loads((tmp_path / "mimic_cxr/default/1.0.0/counts.json").read_text())
    assert counts["rejected"]["wrong_checksum"] == 2
    monkeypatch.chdir(root)  # the same from relative paths
    assert make(mimic_cxr, root=".", size=16, checksums="SHA256SUMS.txt").reasons["wrong_checksum"] == 2
    table = root / "mimic-cxr-2.0.0-split.csv.gz"
    table.write_bytes(table.read_bytes() + b"\0")
    with pytest.raises(ValueError, match=r"split\.csv\.gz has another SHA-256 than .*SHA256SUMS\.txt"):
        make(mimic_cxr, **settings)


@pytest.mark.parametrize(
    ("text", "message"), [("", "holds no line"), ("abc  file\n", "line 1 is no SHA-256"), (None, "does not exist")]
)
def test_lists_that_are_none(tmp_path, text, message):
    if text is not None:
        (tmp_path / "sums.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        Checksums(tmp_path / "sums.txt")
