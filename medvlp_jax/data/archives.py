"""Archives that somebody else made: read member by member into memory, never unpacked to disk.

One with a member that unpacking would put, or lead, outside its folder is refused whole: somebody has tampered with it.
DICOMDIR, the index of a disc, names files likewise; it is not followed at all.
"""

from __future__ import annotations

import gzip
import io
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

LARGEST_MEMBER = 2**30
"""Bytes, unpacked."""
_DAMAGED = (zipfile.BadZipFile, tarfile.ReadError, gzip.BadGzipFile, zlib.error, EOFError, NotImplementedError)


def open_zip(path: Path) -> zipfile.ZipFile:
    """A .zip whose every member is harmless. Raises: ValueError saying what is wrong, without names of members."""
    try:
        archive = zipfile.ZipFile(path)
    except _DAMAGED:
        raise ValueError(f"{path} is no complete .zip file. Download it again.") from None
    for number, member in enumerate(archive.infolist(), start=1):
        _check(path, number, member.orig_filename, member.file_size)
        _check(path, number, member.filename, member.file_size)
        if stat.S_ISLNK(member.external_attr >> 16):
            raise _refusal(path, number, "is a link")
        if member.flag_bits & 1:
            raise ValueError(f"{path} is encrypted. Unpack it with its password, and give what was in it.")
    return archive


def read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """Raises: KeyError when there is no such member; ValueError when it is damaged."""
    try:
        return archive.read(name)
    except _DAMAGED:
        raise ValueError(f"A member of {archive.filename} is damaged. Download it again.") from None


def tar_files(path: Path, suffix: str) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the files of a .tar, .tgz, ... whose names end in `suffix`, in the archive's order.

    Raises: ValueError as `open_zip`, when the iteration comes to what is wrong.
    """
    try:
        with tarfile.open(path) as archive:
            for number, member in enumerate(archive, start=1):
                _check(path, number, member.name, member.size)
                if not member.isreg() and not member.isdir():
                    raise _refusal(path, number, "is a link or a device")
                if member.isreg() and member.name.endswith(suffix):
                    yield member.name, archive.extractfile(member).read()  # type: ignore[union-attr]
    except _DAMAGED:
        raise ValueError(f"{path} is no complete .tar archive. Download it again.") from None


def gunzip(path: Path, data: bytes) -> bytes:
    """The content of a .gz file. Args: path: for messages. Raises: ValueError when it is damaged or huge."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            content = file.read(LARGEST_MEMBER + 1)
    except _DAMAGED:
        raise ValueError(f"{path} is no complete .gz file. Download it again.") from None
    if len(content) > LARGEST_MEMBER:
        raise ValueError(f"{path} holds more than {LARGEST_MEMBER} bytes.")
    return content


def refuse(path: Path, option: str) -> None:
    """Raises ValueError when an archive or a DICOMDIR was given where neither is read, saying what to do instead."""
    if not path.is_file():
        return
    with open(path, "rb") as file:
        head = file.read(2**16)
    if path.name.upper().startswith("DICOMDIR") or (head[128:132] == b"DICM" and b"1.2.840.10008.1.3.10" in head):
        raise ValueError(
            f"{option} {path} is a DICOMDIR, the index of a disc. It is not read, and the files it names are not "
            "looked for. Write a manifest with one row per image file (a column with its path) and build "
            "image_report_folder."
        )
    if zipfile.is_zipfile(path) or tarfile.is_tarfile(path):
        command = f"unzip {path} -d FOLDER" if zipfile.is_zipfile(path) else f"tar -xf {path} -C FOLDER"
        raise ValueError(f"{option} {path} is an archive. Unpack it first ({command}), and give what was in it.")


def _check(path: Path, number: int, name: str, size: int) -> None:
    parts = re.split(r"[/\\]", name)
    if not parts[0] or re.match(r"[A-Za-z]:", name) or ".." in parts or "\0" in name:
        raise _refusal(path, number, "has a name that leads out of the folder it is unpacked to")
    if size > LARGEST_MEMBER:
        raise _refusal(path, number, f"has more than {LARGEST_MEMBER} bytes")


def _refusal(path: Path, number: int, what: str) -> ValueError:
    return ValueError(f"{path} is not read: its member {number} {what}. Download it again, from its publisher.")
