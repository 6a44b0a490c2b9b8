"""What damaged image files do to the reader of the builders:

    python -m benchmarks.fuzz_images [--files 10000] [--seed 0] [--first 0] [--only KIND]

Every file is a seeded mutation of a sample: the DICOM files that come with pydicom, and DICOM, JPEG and PNG files made
here. A worker process makes a record of each, as a build does; one that works for ten seconds of processor time without
an answer is killed. A file may be read or refused for a documented reason. Anything else (another exception, a dead
process, a hang, more than a GiB of memory) is counted, named with its number (run again with --first N --files 1), and
the exit status is 1.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import multiprocessing
import os
import resource
import struct
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import numpy as np

from medvlp_jax.data import film_records, images
from medvlp_jax.data.staging import Rejection
from tfds_builders.image_report_folder.make_dummy_data import dicom, ellipses
from tfds_builders.testing import settings

TIME_LIMIT, MEMORY_LIMIT, ADDRESS_LIMIT = 10.0, 2**30, 2**33
WALL_LIMIT = 120.0
"""Seconds for a process that waits, or gets no processor."""
REASONS = (*images.REASONS, "view_unknown", "not_frontal")
SYNTAXES = ("1.2", "1.2.1", "1.2.1.99", "1.2.2", "1.2.4.50", "1.2.4.51", "1.2.4.57", "1.2.4.70", "1.2.4.80", "1.2.4.81")
SYNTAXES += ("1.2.4.90", "1.2.4.91", "1.2.4.100", "1.2.5", "1.2.9999")
VRS = (b"US", b"SS", b"UL", b"OW", b"OB", b"SQ", b"UN", b"DS", b"IS", b"LO", b"PN", b"UI", b"AT", b"FD", b"ZZ")
NUMBERS = ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "SamplesPerPixel", "PixelRepresentation")
VALUES = (0, 1, 2, 3, 7, 8, 9, 12, 16, 17, 32, 33, 64, 255, 1000, 8192, 30000, 32767, 32768, 65535)

Mutation = Callable[[bytes, np.random.Generator], bytes]


class Outcome(NamedTuple):
    """what: "read", a reason, or the name of an exception. expected: is it documented? peak: bytes of memory."""

    kind: str
    sample: str
    what: str
    expected: bool
    seconds: float = 0.0
    peak: int = 0


def samples() -> dict[str, bytes]:
    """Name -> bytes of the files that are mutated: those of pydicom with pixels and a few without, and ours."""
    import pydicom.data

    folder = Path(pydicom.data.__file__).parent
    found = {path.name: path.read_bytes() for path in sorted(folder.rglob("*.dcm"))}
    pixels = (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10")
    few = ("rtplan.dcm", "test-SR.dcm", "nested_priv_SQ.dcm")
    found = {name: data for name, data in found.items() if name in few or any(tag in data for tag in pixels)}
    found["DICOMDIR"] = (folder / "test_files/dicomdirtests/DICOMDIR").read_bytes()
    return {**found, **made_samples()}


def made_samples() -> dict[str, bytes]:
    """Those that are drawn here."""
    from PIL import Image

    grey = ellipses(0)
    deep = grey.astype(np.uint16) * 16
    rgb = np.stack([grey, ellipses(1), ellipses(2)], -1)
    made = {
        "made deep": dicom(deep, ViewPosition="PA", PatientName="Made^Up", WindowCenter="900", WindowWidth="1500"),
        "made inverted": dicom(deep, inverted=True, RescaleSlope="2", RescaleIntercept="-1024"),
        "made 8 bit": dicom(grey, bits=8),
        "made frames": dicom(np.stack([deep, deep[::-1]])),
    }
    for name, syntax, options in (
        ("JPEG", "1.2.840.10008.1.2.4.50", {"format": "JPEG", "quality": 90}),
        ("JPEG 2000", "1.2.840.10008.1.2.4.90", {"format": "JPEG2000"}),
    ):
        buffer = io.BytesIO()
        Image.fromarray(grey).save(buffer, **options)
        made[f"made {name}"] = encapsulated(grey, buffer.getvalue(), syntax)
    for name, picture, options in (
        ("made grey.png", grey, {"format": "PNG"}),
        ("made deep.png", deep, {"format": "PNG"}),
        ("made rgb.png", rgb, {"format": "PNG"}),
        ("made grey.jpg", grey, {"format": "JPEG"}),
        ("made rgb.jpg", rgb, {"format": "JPEG", "subsampling": 2}),
        ("made progressive.jpg", grey, {"format": "JPEG", "progressive": True}),
        ("made palette.png", None, {"format": "PNG"}),
    ):
        image = Image.fromarray(rgb).convert("P") if picture is None else Image.fromarray(picture)
        buffer = io.BytesIO()
        image.save(buffer, **options)
        made[name] = buffer.getvalue()
    return made


def encapsulated(picture: np.ndarray, stream: bytes, syntax: str) -> bytes:
    """A DICOM file of 8 bits with one compressed frame."""
    import pydicom

    header = pydicom.dcmread(io.BytesIO(dicom(picture, bits=8)))
    header.file_meta.TransferSyntaxUID = syntax
    header.PixelData = pydicom.encaps.encapsulate([stream])
    header["PixelData"].is_undefined_length = True
    buffer = io.BytesIO()
    header.save_as(buffer)
    return buffer.getvalue()


def flipped(data: bytes, rng: np.random.Generator) -> bytes:
    out = bytearray(data)
    end = len(out) if rng.random() < 0.5 else min(len(out), 1024)
    for place in rng.integers(0, end, 2 ** rng.integers(7)):
        out[place] ^= 1 << int(rng.integers(8))
    return bytes(out)


def truncated(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: int(rng.integers(len(data)))]


def spliced(data: bytes, rng: np.random.Generator) -> bytes:
    a, b = sorted(rng.integers(0, len(data), 2))
    place = int(rng.integers(len(data)))
    return data[:place] + data[a:b] + data[place + int(b - a) :]


def inserted(data: bytes, rng: np.random.Generator) -> bytes:
    place, size = int(rng.integers(len(data))), int(rng.integers(1, 4096))
    block = bytes(size) if rng.random() < 0.3 else rng.bytes(size)
    return data[:place] + block + data[place:]


def deleted(data: bytes, rng: np.random.Generator) -> bytes:
    place = int(rng.integers(len(data)))
    return data[:place] + data[place + int(rng.integers(1, max(2, len(data) // 4))) :]


def _elements(data: bytes) -> list[int]:
    """Places of what looks like the VR of an explicit element."""
    head = data[: 2**14]
    return [place for vr in VRS for place in range(132, len(head)) if head[place : place + 2] == vr]


def length_changed(data: bytes, rng: np.random.Generator) -> bytes:
    places = _elements(data)
    if not places:
        return flipped(data, rng)
    place = int(rng.choice(places)) + 2
    value = int(rng.choice([0, 1, 2, 3, 0x7FFF, 0xFFFE, 0xFFFF, int(rng.integers(65536))]))
    new = struct.pack("<H", value) if rng.random() < 0.6 else struct.pack("<HI", 0, value << int(rng.integers(17)))
    return data[:place] + new + data[place + len(new) :]


def vr_changed(data: bytes, rng: np.random.Generator) -> bytes:
    places = _elements(data)
    if not places:
        return flipped(data, rng)
    place = int(rng.choice(places))
    return data[:place] + VRS[rng.integers(len(VRS))] + data[place + 2 :]


def numbers_set(data: bytes, rng: np.random.Generator) -> bytes:
    """Sizes that contradict each other or are huge."""

    def change(header) -> None:
        for name in rng.choice(NUMBERS, rng.integers(1, 4), replace=False):
            setattr(header, str(name), int(rng.choice(VALUES)))
        if rng.random() < 0.4:
            header.NumberOfFrames = int(rng.choice([0, 1, 2, 3, 1000, 2**31 - 1]))
        if rng.random() < 0.2:
            header.RescaleSlope, header.RescaleIntercept = rng.choice(["0", "-1", "1e300", "nan"], 2)
        if rng.random() < 0.2:
            header.WindowCenter, header.WindowWidth = [str(rng.choice(["0", "-5", "1e300", "40\\80"]))] * 2
        if rng.random() < 0.2:
            known = ["MONOCHROME1", "RGB", "YBR_FULL", "YBR_FULL_422", "PALETTE COLOR", "CMYK", ""]
            header.PhotometricInterpretation = str(rng.choice(known))

    return _rewritten(data, change) or flipped(data, rng)


def wrong_syntax(data: bytes, rng: np.random.Generator) -> bytes:
    start = data.find(b"1.2.840.10008.1.2", 132, 2048)
    if start < 0:
        return flipped(data, rng)
    end = start
    while end < len(data) and data[end : end + 1] in b"0123456789.":
        end += 1
    uid = f"1.2.840.10008.{rng.choice(SYNTAXES)}".encode()
    uid += b"\0" * (len(uid) % 2)
    end += data[end : end + 1] == b"\0"
    return data[: start - 2] + struct.pack("<H", len(uid)) + uid + data[end:]


def _rewritten(data: bytes, change: Callable) -> bytes | None:
    import pydicom

    with warnings.catch_warnings(), contextlib.suppress(Exception):
        warnings.simplefilter("ignore")
        header = pydicom.dcmread(io.BytesIO(data))
        change(header)
        buffer = io.BytesIO()
        header.save_as(buffer)
        return buffer.getvalue()
    return None


def stream_sizes(data: bytes, rng: np.random.Generator) -> bytes:
    """Another height and width in the JPEG, JPEG 2000 or PNG stream, in a file of its own or inside DICOM."""
    height, width = (int(value) for value in rng.choice([1, 97, 1000, 8000, 12000, 30000, 65500], 2))
    out = bytearray(data)
    if data[:4] == b"\x89PNG":
        out[16:24] = struct.pack(">II", width, height)
        out[29:33] = struct.pack(">I", zlib.crc32(out[12:29]))
        return bytes(out)
    for marker in (b"\xff\xc0\x00", b"\xff\xc1\x00", b"\xff\xc2\x00", b"\xff\xc3\x00"):
        place = data.find(marker)
        if place > 0:
            out[place + 5 : place + 9] = struct.pack(">HH", height, width)
            return bytes(out)
    place = data.find(b"\xff\x4f\xff\x51")
    if place > 0:
        out[place + 8 : place + 16] = struct.pack(">II", width, height)
        if rng.random() < 0.5:  # of a tile, too
            out[place + 24 : place + 32] = struct.pack(">II", width, height)
        return bytes(out)
    return numbers_set(data, rng)


def bomb(data: bytes, rng: np.random.Generator) -> bytes:
    """Small files that say, or unpack to, a great deal."""
    which = int(rng.integers(6))
    if which == 0:  # a valid PNG of a large black picture
        side = int(rng.choice([9000, 20000, 40000]))
        packer = zlib.compressobj(9)
        row = bytes(side + 1)
        packed = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
        chunks = ((b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)), (b"IDAT", packed), (b"IEND", b""))
        return b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
            for name, body in chunks
        )
    if which == 1:  # deflated DICOM, 300 to 1500 MB
        whole = dicom(ellipses(0), bits=8)
        meta_end = 132 + 12 + struct.unpack("<I", whole[140:144])[0]
        new = wrong_uid = whole[:meta_end].replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99")
        new = new[:140] + struct.pack("<I", len(wrong_uid) - 144) + new[144:]
        place = new.find(b"1.2.840.10008.1.2.1.99")
        new = new[: place - 2] + struct.pack("<H", 22) + new[place:]
        packer = zlib.compressobj(1, wbits=-15)
        body = packer.compress(whole[meta_end:])
        for _ in range(int(rng.integers(300, 1500))):
            body += packer.compress(bytes(2**20))
        return new + body + packer.flush()
    if which == 2:  # a progressive JPEG with the last scan many times over
        stream = made_samples()["made progressive.jpg"]
        scan = stream[stream.rfind(b"\xff\xda") : -2]
        stream = stream[:-2] + scan * int(rng.choice([20, 45, 2000])) + b"\xff\xd9"
        place = stream.find(b"\xff\xc2")
        return stream[: place + 5] + struct.pack(">HH", 8000, 8000) + stream[place + 9 :]
    if which == 3:  # sequences within sequences
        depth = int(rng.choice([50, 900, 20000]))
        opening = b"\x08\x00\x15\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
        place = dicom(ellipses(0), bits=8).find(b"\x08\x00\x16\x00")
        return dicom(ellipses(0), bits=8)[:place] + opening * depth
    if which == 4:  # long rows and columns with their pixels
        height, width = [(1, 30000), (30000, 2), (2, 32768), (3, 65535)][int(rng.integers(4))]
        return dicom(np.arange(height * width, dtype=np.uint16).reshape(height, width) % 4096)
    grey = np.zeros((8000, 8000), np.uint8)  # large and honest
    grey[::7, ::5] = 200
    return images.encode_png(grey) if rng.random() < 0.5 else images.encode_jpeg(grey)


KINDS: dict[str, tuple[Mutation, float]] = {
    "bits flipped": (flipped, 16),
    "truncated": (truncated, 10),
    "spliced": (spliced, 10),
    "block inserted": (inserted, 8),
    "block deleted": (deleted, 8),
    "length changed": (length_changed, 10),
    "VR changed": (vr_changed, 10),
    "numbers set": (numbers_set, 12),
    "wrong syntax": (wrong_syntax, 7),
    "stream sizes": (stream_sizes, 8.5),
    "bomb": (bomb, 0.5),
}
"""Name -> mutation and its share."""


def mutated(number: int, seed: int, known: dict[str, bytes], kinds: dict[str, tuple[Mutation, float]] = KINDS):
    """(kind, sample, bytes) of a number; half of the samples are pydicom's. A fifth is mutated twice."""
    rng = np.random.default_rng([seed, number])
    made = [name for name in known if name.startswith("made ")]
    names = made if rng.random() < 0.5 else [name for name in known if name not in made]
    name = names[rng.integers(len(names))]
    shares = np.array([share for _, share in kinds.values()])
    kind = list(kinds)[rng.choice(len(kinds), p=shares / shares.sum())]
    data = kinds[kind][0](known[name], rng)
    if rng.random() < 0.2 and kind != "bomb" and data:
        data = flipped(data, rng)
    return kind, name, repaired(data) if rng.random() < 0.5 else data


def repaired(data: bytes) -> bytes:
    """With the checksums of a PNG right again, or the end marker of a JPEG: what is wrong lies deeper."""
    if data[:3] == b"\xff\xd8\xff" and b"\xff\xd9" not in data[-4096:]:
        return data + b"\xff\xd9"
    if data[:4] != b"\x89PNG":
        return data
    out, place = bytearray(data), 8
    while place + 12 <= len(out):
        end = place + 8 + struct.unpack(">I", out[place : place + 4])[0]
        if end + 4 > len(out):
            break
        out[end : end + 4] = struct.pack(">I", zlib.crc32(out[place + 4 : end]))
        place = end + 4
    return bytes(out) if b"IEND" in out[-64:] else bytes(out) + b"\0\0\0\0IEND\xaeB`\x82"


def make(data: bytes, number: int, path: Path) -> tuple[str, bool]:
    """(what came of the file, whether that is documented); settings vary with the number."""
    path.write_bytes(data)
    config = settings(
        size=(256, 0)[number % 5 == 0],
        fit=images.FITS[number % 3],
        crop_border=number % 4 == 0,
        depth=(8, 16)[number % 6 == 0],
        frame=(-1, 0)[number % 2],
        only_frontal=number % 7 == 0,
        blank_burned_in=number % 3 == 0,
    )
    item = {"row": number, "image": "x", "path": str(path), "split": "train", "view": "", "view_from_header": True}
    item |= dict.fromkeys(("image_id", "study_id", "patient_id"), "x")
    try:
        film_records.make_record(item, config)
    except Rejection as rejection:
        return rejection.reason, rejection.reason in REASONS
    except Exception as error:
        return f"{type(error).__name__}: {error}", False
    return "read", True


def _peak() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return 0


def _worker(connection: Connection, seed: int, only: str, path: Path) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_LIMIT, ADDRESS_LIMIT))  # no file may take down the machine
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what libjpeg and libpng say
    known = samples()
    kinds = {only: KINDS[only]} if only else KINDS
    while True:
        number = connection.recv()
        kind, sample, data = mutated(number, seed, known, kinds)
        connection.send((kind, sample))
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        start = time.process_time()
        what, expected = make(data, number, path)
        connection.send(Outcome(kind, sample, what, expected, time.process_time() - start, _peak()))


def _answers(connection: Connection, pid: int) -> bool:
    """Whether an answer comes within the limits."""

    def used() -> float:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    start, end = used(), time.monotonic() + WALL_LIMIT
    while not connection.poll(0.5):
        if used() - start > TIME_LIMIT or time.monotonic() > end:
            return False
    return True


def outcomes(numbers: range, seed: int, only: str = ""):
    """Yields (number, Outcome); a worker that dies or hangs is replaced."""
    context = multiprocessing.get_context("spawn")
    worker = None
    with tempfile.TemporaryDirectory() as folder:
        for number in numbers:
            if worker is None:
                connection, theirs = context.Pipe()
                arguments = (theirs, seed, only, Path(folder) / "x")
                worker = context.Process(target=_worker, args=arguments, daemon=True)
                worker.start()
                theirs.close()
            kind = sample = "?"
            try:
                connection.send(number)
                kind, sample = connection.recv()  # making a bomb takes its time
                if _answers(connection, worker.pid):
                    yield number, connection.recv()
                    continue
                what = "hang"
            except (EOFError, OSError):
                what = "process died"
            worker.kill()
            worker.join()
            worker = None
            yield number, Outcome(kind, sample, what, False)
        if worker is not None:
            worker.kill()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", choices=["", *KINDS])
    chosen = parser.parse_args(argv)
    table: dict[str, collections.Counter[str]] = {}
    reasons: collections.Counter[str] = collections.Counter()
    bad, most, slowest = 0, 0, 0.0
    for number, outcome in outcomes(range(chosen.first, chosen.first + chosen.files), chosen.seed, chosen.only):
        fate = "read" if outcome.what == "read" else "refused" if outcome.expected else "crash"
        fate = {"hang": "hang", "process died": "died"}.get(outcome.what, fate)
        table.setdefault(outcome.kind, collections.Counter())[fate] += 1
        reasons[outcome.what.split(":")[0]] += 1
        if outcome.peak > MEMORY_LIMIT:
            table[outcome.kind]["> 1 GiB"] += 1
        if not outcome.expected or outcome.peak > MEMORY_LIMIT:
            bad += 1
            mib = outcome.peak / 2**20
            print(f"file {number}: {outcome.kind}, {outcome.sample}: {outcome.what[:200]} ({mib:.0f} MiB)", flush=True)
        most, slowest = max(most, outcome.peak), max(slowest, outcome.seconds)
    columns = ("read", "refused", "crash", "died", "hang", "> 1 GiB")
    table["all"] = sum(table.values(), collections.Counter())
    print(f"{'mutation':<16}{'files':>8}" + "".join(f"{column:>9}" for column in columns))
    for kind in (*(kind for kind in KINDS if kind in table), "all"):
        files = sum(count for fate, count in table[kind].items() if fate != "> 1 GiB")
        print(f"{kind:<16}{files:>8}" + "".join(f"{table[kind][column]:>9}" for column in columns))
    print("; ".join(f"{reason} {count}" for reason, count in reasons.most_common()))
    print(f"most memory {most / 2**20:.0f} MiB, slowest file {slowest:.2f} s of processor time")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
