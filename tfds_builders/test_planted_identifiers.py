"""Files full of invented identifiers, everywhere a DICOM, JPEG or PNG file can hold one: none comes out of a build.

Raw ids and paths may be in ids.csv and rejected.csv, which is what these are for; nothing else of a header may.
"""

import base64
import io
import json

import numpy as np
import pydicom
import pytest
from PIL import Image, PngImagePlugin

pytest.importorskip("tensorflow_datasets")

from medvlp_jax import audit, prepare, stats
from tfds_builders.image_report_folder.make_dummy_data import dicom, ellipses
from tfds_builders.mimic_cxr import make_dummy_data
from tfds_builders.testing import write_csv

WORDS = {
    "PatientName": "Quxnamian^Zebulona",
    "PatientID": "MRN88411770",
    "OtherPatientIDs": "OTHER4471823",
    "PatientBirthDate": "19310417",
    "PatientAddress": "17 Nirgendwo Lane",
    "PatientComments": "Commentatrix",
    "AccessionNumber": "ACC55661239",
    "StudyID": "STDY771230",
    "InstitutionName": "Zentralspital Utopia",
    "InstitutionAddress": "Utopiaplatz 99",
    "ReferringPhysicianName": "Refererova^Drusilla",
    "PerformingPhysicianName": "Performov^Gaspardo",
    "OperatorsName": "Operatorix^Tech",
    "StudyDescription": "Thorax Descriptova",
    "ImageComments": "Imagecommentova",
    "StudyDate": "20190722",
    "DeviceSerialNumber": "SERIAL662211",
}
ELSEWHERE = ("PRIVATEWORDA", "METAWORDB", "PREAMBLEWORDC", "OVERLAYWORDD", "OVERLAYBITSE", "SEQUENCEWORDF", "AEWORDG")
MALFORMED = "SECRETVALUE00001"  # as long as a number may be
UID_WORD = "77123456789012"


def planted(number, mistake=""):
    """A DICOM file with a word in every place; `mistake`: a field that the reader needs and that holds a word."""
    header = pydicom.dcmread(io.BytesIO(dicom(ellipses(number).astype(np.uint16) * 16, ViewPosition="PA", **WORDS)))
    header.private_block(0x0011, "PRIVATEWORDA", create=True).add_new(1, "LO", "PRIVATEWORDA")
    item = pydicom.Dataset()
    item.RequestedProcedureDescription = "SEQUENCEWORDF"
    header.RequestAttributesSequence = [item]
    header.add_new(0x60000010, "US", 8)
    header.add_new(0x60000011, "US", 16)
    header.add_new(0x60000022, "LO", "OVERLAYWORDD")
    header.add_new(0x60001500, "LO", "OVERLAYWORDD")
    header.add_new(0x60003000, "OW", b"OVERLAYBITSE".ljust(16))
    header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = f"1.2.{UID_WORD}"
    header.file_meta.SourceApplicationEntityTitle = "AEWORDG"
    header.file_meta.PrivateInformationCreatorUID = "1.2.3"
    header.file_meta.PrivateInformation = b"METAWORDB "
    header.preamble = b"PREAMBLEWORDC".ljust(128, b"\0")
    header.WindowCenter = header.WindowWidth = header.RescaleSlope = "1111111111111111"
    header.RescaleIntercept, header.NumberOfFrames = "0000000000000000", "1"
    buffer = io.BytesIO()
    header.save_as(buffer)
    data = buffer.getvalue()
    tags = {"window": b"\x28\x00\x50\x10DS\x10\x00", "slope": b"\x28\x00\x53\x10DS\x10\x00"}
    if mistake in tags:
        place = data.find(tags[mistake]) + 8
        data = data[:place] + MALFORMED.encode() + data[place + 16 :]
    elif mistake == "frames":
        data = data.replace(b"\x28\x00\x08\x00IS\x02\x001 ", b"\x28\x00\x08\x00IS\x10\x00" + MALFORMED.encode())
    elif mistake == "frame number":
        data = data.replace(b"\x28\x00\x08\x00IS\x02\x001 ", b"\x28\x00\x08\x00IS\x0c\x00881177664433")
    elif mistake == "colours":
        data = data.replace(b"CS\x0c\x00MONOCHROME2 ", b"CS\x10\x00" + MALFORMED.encode())
    elif mistake == "view":
        data = data.replace(b"CS\x02\x00PA", b"CS\x10\x00" + MALFORMED.encode())
    elif mistake == "rows":
        data = data.replace(b"\x28\x00\x10\x00US\x02\x00", b"\x28\x00\x10\x00LO\x02\x00")
    elif mistake == "syntax":
        data = data.replace(b"1.2.840.10008.1.2.1\0", f"1.2.840.1.{UID_WORD}"[:19].encode() + b"\0")
    elif mistake == "cut":
        data = data[:-4000]
    return data


MISTAKES = ("", "window", "slope", "frames", "frame number", "colours", "view", "rows", "syntax", "cut")


def found_in(data, words):
    """Words that are in some bytes: as they are, in UTF-16, hexadecimal or base64; upper and lower case."""
    low, hexadecimal = data.lower(), data.hex() if len(data) < 2**20 else ""
    found = []
    for word in words:
        for part in word.split("^"):
            raw = part.encode()
            forms = [raw.lower(), *(part.lower().encode(code) for code in ("utf-16-le", "utf-16-be"))]
            inside = any(form in low for form in forms) or raw.hex() in hexadecimal
            for start in range(3):  # the inner part of base64 that begins at any of three places
                inner = base64.b64encode(b"\0" * start + raw).decode()[4 if start else 0 :].rstrip("=")[:-2]
                inside |= len(inner) > 6 and inner.encode() in data
            if inside:
                found.append(part)
    return found


def search(folder, words, but=()):
    """Number of files below a folder, and (file, words) of those that hold any. `but`: endings of names left out."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    finds = [(path.name, found_in(path.read_bytes(), words)) for path in files if not path.name.endswith(but)]
    return len(files), [find for find in finds if find[1]]


def test_the_search_finds_what_it_looks_for():
    for form in (b"xx MRN88411770", "MRN88411770".encode("utf-16-le"), b"mrn88411770", b"MRN88411770".hex().encode()):
        assert found_in(form, ["MRN88411770"] if form[:1] != b"4" else []) or bytes.fromhex(form.decode())
    for start in range(3):
        assert found_in(base64.b64encode(b"-" * start + b"MRN88411770 and more"), ["MRN88411770"])
    assert found_in(planted(0), WORDS.values()) == [part for word in WORDS.values() for part in word.split("^")]
    assert found_in(planted(0), [*ELSEWHERE, UID_WORD]) == [*ELSEWHERE, UID_WORD]
    for mistake in ("window", "slope", "frames", "colours", "view"):
        assert found_in(planted(0, mistake), [MALFORMED]), mistake


def test_nothing_of_a_dicom_header_comes_out(tmp_path, capfd, caplog, recwarn):
    """Records, side tables, JSON, console, logs and warnings of every command, of good and of malformed files."""
    make_dummy_data.write(tmp_path / "raw", "dcm", copies=3)
    paths = sorted((tmp_path / "raw").rglob("*.dcm"))
    assert len(paths) > len(MISTAKES)
    for number, path in enumerate(paths):
        path.write_bytes(planted(number, MISTAKES[number % len(MISTAKES)]))
    told = tmp_path / "told"
    told.mkdir()
    data = str(tmp_path / "data")
    command = ["mimic_cxr", "--root", str(tmp_path / "raw"), "--data_dir", data, "--size=32"]
    command += ["--min_words=1", "--only_frontal=false", "--last_paragraph=true"]
    caplog.set_level("DEBUG")
    assert prepare.main([*command, "--estimate", "--json", str(told / "estimate.json")]) == 0
    assert prepare.main([*command, "--workers=1", "--json", str(told / "build.json")]) == 0
    assert prepare.main(["mimic_cxr", "--verify", "--data_dir", data, "--json", str(told / "verify.json")]) == 0
    of_set = ["mimic_cxr", "--data_dir", data, "--json"]
    assert stats.main([*of_set, str(told / "s.json"), "--html", str(told / "s.html")]) == 0
    assert audit.main([*of_set, str(told / "audit.json"), "--outputs", str(told)]) == 0
    for number, path in enumerate(paths):
        path.write_bytes(planted(number, ("rows", "syntax", "frames", "cut")[number % 4]))
    assert prepare.main([*command, "--name=none", "--workers=1"]) == 1  # no record at all: an error message
    printed = capfd.readouterr()
    (told / "console.txt").write_text(printed.out + printed.err)
    (told / "logs.txt").write_text(caplog.text + "\n".join(str(warning.message) for warning in recwarn.list))
    rejected = (tmp_path / "data/mimic_cxr/default/1.0.0/rejected.csv").read_text()
    assert {"multi_frame", "unreadable_image", "truncated_image"} <= {
        row.split(",")[1] for row in rejected.splitlines()
    }
    assert json.loads((told / "build.json").read_text())["counts"]["splits"]["train"]["records"] > 3
    words = [*WORDS.values(), *ELSEWHERE, UID_WORD, MALFORMED, "881177664433"]
    count, finds = search(tmp_path / "data", words)
    assert (count > 8, finds) == (True, [])
    assert search(told, words) == (8, [])
    raw_ids = [value for row in make_dummy_data.ROWS for value in row[:2]]
    but = ("ids.csv", "rejected.csv", ".msgpack")  # the chunks of the build that failed, which wait under .staging
    assert search(tmp_path / "data", raw_ids, but)[1] == []
    assert search(told, raw_ids)[1] == []


def test_nothing_of_file_names_and_picture_comments_comes_out(tmp_path, capfd):
    """Names of patients in file names and ids, in Exif, JPEG comments, PNG text: only the tables of ids have them."""
    grey = Image.fromarray(ellipses(3))
    exif = Image.Exif()
    exif[0x010E] = "EXIFWORDH"
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "PNGWORDI")
    rows = []
    for number in range(8):
        name = f"Quxnamian_Zebulona_{number}.{'jpg' if number % 2 else 'png'}"
        path = tmp_path / "raw" / name
        path.parent.mkdir(exist_ok=True)
        picture = Image.fromarray(ellipses(number)) if number else grey
        if number % 2:
            picture.save(path, exif=exif, comment=b"COMMENTWORDJ")
        else:
            picture.save(path, pnginfo=text)
        if number > 5:
            path.write_bytes(path.read_bytes()[:-900])
        rows.append([name, f"MRN8841177{number}", "clear lungs"])
    write_csv(tmp_path / "raw" / "m.csv", ("image", "patient_id", "findings"), rows)
    command = ["image_report_folder", "--manifest", str(tmp_path / "raw/m.csv"), "--data_dir", str(tmp_path / "data")]
    assert prepare.main([*command, "--size=0", "--workers=1", "--fractions=1,0,0"]) == 0
    (tmp_path / "data" / "console.txt").write_text("".join(capfd.readouterr()))
    words = ["Quxnamian", "MRN8841177", "EXIFWORDH", "PNGWORDI", "COMMENTWORDJ"]
    assert found_in(b"".join(path.read_bytes() for path in (tmp_path / "raw").iterdir()), words) == words
    assert search(tmp_path / "data", words, but=("ids.csv", "rejected.csv"))[1] == []
    finds = dict(search(tmp_path / "data", words)[1])
    assert finds == {"ids.csv": words[:2], "rejected.csv": words[:1]}
