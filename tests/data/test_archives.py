"""Archives that would write outside their folder, hide links, or grow without end; and where archives are not read."""

import gzip
import io
import shutil
import stat
import tarfile
import zipfile
from pathlib import Path

import pydicom.data
import pytest

from medvlp_jax.data import archives, tables

ESCAPES = ["../evil.csv", "/evil.csv", "a/../../evil.csv", "C:\\evil.csv", "..\\evil.csv", "\\\\host\\share\\evil.csv"]
DICOMDIR = Path(pydicom.data.__file__).parent / "test_files" / "dicomdirtests" / "DICOMDIR"


def zipped(path, names, **change):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            info = zipfile.ZipInfo(name)
            for field, value in change.items():
                setattr(info, field, value)
            archive.writestr(info, "a,b\n1,2\n")
    return path


def tarred(path, *members):
    with tarfile.open(path, "w:gz") as archive:
        for name, kind, target in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            info.size = 4 if kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(b"<a/>") if info.size else None)
    return path


@pytest.mark.parametrize("name", ESCAPES)
def test_names_that_lead_out(tmp_path, name):
    with pytest.raises(ValueError, match="member 2 has a name that leads out of the folder") as error:
        archives.open_zip(zipped(tmp_path / "t.zip", ["fine.csv", name]))
    assert "evil.csv" not in str(error.value)  # names may be those of patients
    with pytest.raises(ValueError, match="member 1 has a name"):
        tables.Table(zipped(tmp_path / "t.csv.zip", [name]), ["a"])
    made = tarred(tmp_path / "t.tgz", ("fine.xml", tarfile.REGTYPE, ""), (name, tarfile.REGTYPE, ""))
    with pytest.raises(ValueError, match="member 2 has a name"):
        list(archives.tar_files(made, ".xml"))
    assert not list(tmp_path.parent.rglob("evil.csv"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices(tmp_path, kind):
    made = tarred(tmp_path / "t.tgz", ("a.xml", kind, "/etc/passwd"))
    with pytest.raises(ValueError, match="member 1 is a link or a device"):
        list(archives.tar_files(made, ".xml"))


def test_link_in_a_zip(tmp_path):
    made = zipped(tmp_path / "t.zip", ["a.csv"], external_attr=(stat.S_IFLNK | 0o777) << 16)
    with pytest.raises(ValueError, match="member 1 is a link"):
        archives.open_zip(made)


def test_archives_that_grow_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "LARGEST_MEMBER", 1000)
    with zipfile.ZipFile(tmp_path / "t.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.csv", bytes(10_000))
    with pytest.raises(ValueError, match="member 1 has more than 1000 bytes"):
        archives.open_zip(tmp_path / "t.zip")
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(bytes(10_000)))
    with pytest.raises(ValueError, match="holds more than 1000 bytes"):
        tables.read_text(tmp_path / "t.csv.gz")
    with tarfile.open(tmp_path / "t.tgz", "w:gz") as archive:
        info = tarfile.TarInfo("a.xml")
        info.size = 10_000
        archive.addfile(info, io.BytesIO(bytes(10_000)))
    with pytest.raises(ValueError, match="member 1 has more than 1000 bytes"):
        list(archives.tar_files(tmp_path / "t.tgz", ".xml"))


def test_damaged_and_encrypted(tmp_path):
    whole = zipped(tmp_path / "t.zip", ["a.csv"]).read_bytes()
    (tmp_path / "half.zip").write_bytes(whole[:40])
    with pytest.raises(ValueError, match=r"half\.zip is no complete \.zip file"):
        archives.open_zip(tmp_path / "half.zip")
    (tmp_path / "wrong.csv.zip").write_bytes(whole.replace(b"a,b\n", b"a,c\n"))  # its checksum is that of the other
    with pytest.raises(ValueError, match=r"A member of .* is damaged"):
        tables.read_text(tmp_path / "wrong.csv.zip")
    locked = bytearray(whole)
    locked[locked.find(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "locked.zip").write_bytes(locked)
    with pytest.raises(ValueError, match="is encrypted"):
        archives.open_zip(tmp_path / "locked.zip")
    (tmp_path / "half.csv.gz").write_bytes(gzip.compress(b"a,b\n" * 100)[:-9])
    with pytest.raises(ValueError, match=r"no complete \.gz file"):
        tables.read_text(tmp_path / "half.csv.gz")
    whole = tarred(tmp_path / "t.tgz", ("a.xml", tarfile.REGTYPE, "")).read_bytes()
    assert list(archives.tar_files(tmp_path / "t.tgz", ".xml")) == [("a.xml", b"<a/>")]
    (tmp_path / "half.tgz").write_bytes(whole[:60])
    with pytest.raises(ValueError, match=r"no complete \.tar archive"):
        list(archives.tar_files(tmp_path / "half.tgz", ".xml"))


def test_where_archives_are_not_read(tmp_path):
    """--root, --reports and --manifest that point at an archive or a DICOMDIR say what to do instead."""
    pytest.importorskip("tensorflow_datasets")
    from tfds_builders.image_report_folder import image_report_folder
    from tfds_builders.mimic_cxr import make_dummy_data, mimic_cxr
    from tfds_builders.testing import make

    made = {
        "zip": zipped(tmp_path / "set.zip", ["a"]),
        "tar": tarred(tmp_path / "set.tar.gz", ("a", tarfile.REGTYPE, "")),
        "disc": tmp_path / "DICOMDIR",
        "copy": tmp_path / "index.dcm",
    }
    for name in ("disc", "copy"):
        shutil.copy(DICOMDIR, made[name])
    for name, path in made.items():
        advice = {"zip": r"unzip .*set\.zip -d FOLDER", "tar": r"tar -xf .*set\.tar\.gz -C FOLDER"}
        message = advice.get(name, "is a DICOMDIR.* build image_report_folder")
        with pytest.raises(ValueError, match=f"--root {path}.*{message}"):
            make(mimic_cxr, root=str(path))
        with pytest.raises(ValueError, match=f"--manifest {path}.*{message}"):
            make(image_report_folder, manifest=str(path))
        if name != "zip":
            make_dummy_data.write(tmp_path / "mimic")
            with pytest.raises(ValueError, match=f"--reports {path}.*{message}"):
                make(mimic_cxr, root=str(tmp_path / "mimic"), reports=str(path))


def test_archives_that_builders_read(tmp_path):
    """MIMIC-CXR reports, scene graphs and Indiana reports from tampered archives: refused before the build."""
    pytest.importorskip("tensorflow_datasets")
    from tfds_builders.iu_xray import iu_xray
    from tfds_builders.mimic_cxr import make_dummy_data, mimic_cxr
    from tfds_builders.testing import make

    make_dummy_data.write(tmp_path / "mimic")
    reports = zipped(tmp_path / "reports.zip", ["files/p10/p10000032/s50414267.txt", "../../s1.txt"])
    with pytest.raises(ValueError, match=r"reports\.zip is not read: its member 2"):
        make(mimic_cxr, root=str(tmp_path / "mimic"), reports=str(reports))
    (tmp_path / "iu").mkdir()
    tarred(tmp_path / "iu" / "NLMCXR_reports.tgz", ("a.xml", tarfile.SYMTYPE, "/etc/passwd"))
    with pytest.raises(ValueError, match=r"reports\.tgz is not read: its member 1 is a link"):
        make(iu_xray, root=str(tmp_path / "iu"))


def test_a_damaged_report_is_counted(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    from tfds_builders.iu_xray import iu_xray
    from tfds_builders.iu_xray import make_dummy_data as iu_data
    from tfds_builders.mimic_cxr import make_dummy_data, mimic_cxr
    from tfds_builders.testing import make

    make_dummy_data.write(tmp_path / "mimic")
    with zipfile.ZipFile(tmp_path / "reports.zip", "w") as archive:
        for path in sorted((tmp_path / "mimic").rglob("s*.txt")):
            archive.write(path, path.relative_to(tmp_path / "mimic"))
    data = (tmp_path / "reports.zip").read_bytes()
    (tmp_path / "reports.zip").write_bytes(data.replace(b"Mild pulmonary", b"Wild pulmonary", 1))
    made = make(mimic_cxr, root=str(tmp_path / "mimic"), reports=str(tmp_path / "reports.zip"), size=32)
    assert made.reasons["damaged_report_file"] == 1
    iu_data.write(tmp_path / "iu")
    for name, text in (("6.xml", "<eCitation><uId"), ("7.xml", "<other/>")):
        (tmp_path / "iu" / "ecgen-radiology" / name).write_text(text)
    assert make(iu_xray, root=str(tmp_path / "iu"), size=32).reasons["damaged_report_file"] == 2
