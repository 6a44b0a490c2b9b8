"""Tables that come with a data set: CSV files read by column name, and files found where a download puts them."""

from __future__ import annotations

import csv
import difflib
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from medvlp_jax.data import archives
from medvlp_jax.data.staging import Rejection

Row = dict[str, str]
IMAGE_COLUMNS = ("image_id", "dicom_id", "Image Index", "ImageID", "patientId", "ImageId", "Path", "image")
"""Names under which a table of splits or labels may hold images."""


def read_text(path: Path) -> tuple[str, str]:
    """Text of a UTF-8 file, also packed as .gz or as the only file of a .zip, and the SHA-256 of the file itself.

    Raises: ValueError for text that is not UTF-8, for a .zip with several files, and for archives that are damaged or
      not to be trusted.
    """
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if path.suffix == ".gz":
        data = archives.gunzip(path, data)
    elif path.suffix == ".zip":
        with archives.open_zip(path) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/")]
            if len(names) != 1:
                raise ValueError(f"{path} holds {len(names)} files, not one table. Unpack it beside itself.")
            data = archives.read_member(archive, names[0])
    try:
        return data.decode("utf-8-sig"), digest
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}). Convert it: iconv -f latin1 -t utf-8.") from None


def csv_rows(text: str, delimiter: str = ",") -> tuple[list[str], Iterator[list[str]]]:
    """The header, and its rows with blanks at the end of a row cut or filled to the header's width where only these
    differ; other rows keep their own width. Quoted cells may hold delimiters and line breaks."""
    csv.field_size_limit(2**30)
    reader = csv.reader(_lines(text), delimiter=delimiter)
    header = [name.strip() for name in next(reader, [])]
    while header and not header[-1]:  # a header that ends in commas (BBox_List_2017.csv)
        header.pop()

    def rows() -> Iterator[list[str]]:
        for cells in reader:
            if cells:
                extra = cells[len(header) :]
                yield cells if any(cell.strip() for cell in extra) else cells[: len(header)]

    return header, rows()


def _lines(text: str) -> Iterator[str]:
    """With their ends. `io.StringIO` would hold the text once more, in four bytes a character."""
    for line in re.finditer(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+", text):
        yield line[0]


class Table:
    """The rows of a CSV or TSV file (also .gz, .zip) as {column: cell} of the columns asked for.

    Iterate once or again: (number, row), the first record being row 1. Rows of another width than the header go to
    `rejections` (of the last iteration). Blanks around column names do not matter; cells are as they are. The text is
    not kept after an iteration.

    Args: path: the file. need: columns that must be there. want: columns read where there are any.
    Raises: ValueError naming the missing columns, those that the file has, and the closest ones; and for a file that
      changes between iterations.
    """

    def __init__(self, path: Path, need: Sequence[str], want: Sequence[str] = ()):
        self.path = path
        text, self.sha256 = read_text(path)
        self._delimiter = "\t" if ".tsv" in path.suffixes else ","
        self._text: str | None = text
        self.columns, _ = csv_rows(text, self._delimiter)
        missing = [name for name in need if name not in self.columns]
        if missing:
            close = [difflib.get_close_matches(name, self.columns, n=1) for name in missing]
            hints = "".join(f" Did you mean {found[0]!r}?" for found in close if found)
            raise ValueError(
                f"{path} lacks the column{'s' * (len(missing) > 1)} {', '.join(map(repr, missing))}.{hints} "
                f"Its columns: {', '.join(self.columns)}."
            )
        self._read = [(name, self.columns.index(name)) for name in (*need, *want) if name in self.columns]
        self.rejections: list[Rejection] = []

    def __iter__(self) -> Iterator[tuple[int, Row]]:
        self.rejections = []
        text, digest = (self._text, self.sha256) if self._text is not None else read_text(self.path)
        if digest != self.sha256:
            raise ValueError(f"{self.path} changed while it was being read. Run the same command again.")
        self._text = None
        _, rows = csv_rows(text, self._delimiter)
        del text  # the rows hold it until they end
        for number, cells in enumerate(rows, start=1):
            if len(cells) != len(self.columns):
                self.rejections.append(Rejection("wrong_number_of_fields", row=number, item=self.path.name))
                continue
            yield number, {name: cells[place] for name, place in self._read}


def find_file(root: Path, patterns: Sequence[str], what: str) -> Path:
    """The first file that a pattern (relative to `root`, * allowed) matches; of several, the last by name (version).

    Raises: ValueError saying what was looked for, and where.
    """
    found = find_optional(root, patterns)
    if found is None:
        raise ValueError(f"No {what} under {root}: looked for {', '.join(patterns)}. Check --root.")
    return found


def find_optional(root: Path, patterns: Sequence[str]) -> Path | None:
    """As `find_file`; None where there is none."""
    for pattern in patterns:
        matches = sorted(path for path in root.glob(pattern) if path.is_file())
        if matches:
            return matches[-1]
    return None


def index_files(root: Path, suffixes: Sequence[str]) -> dict[str, str]:
    """File name -> path relative to `root`, of all files below it with one of the suffixes (lower case)."""
    found: dict[str, str] = {}
    for folder, folders, names in os.walk(root, followlinks=True):
        folders.sort()
        for name in names:
            if name.lower().endswith(tuple(suffixes)):
                found.setdefault(name, os.path.relpath(os.path.join(folder, name), root))
    return found


class ImageIndex:
    """Finds the image that a table means, whatever folders and extension one of the two writes.

    `patient1/study1/view1.jpg` is never taken for `patient2/study1/view1.jpg`: a name alone stands for an image only
    when the table or the data set has names without folders.

    Args: images: as the table writes them.
    """

    def __init__(self, images: Iterable[str]):
        self._whole: dict[str, str] = {}
        self._parts: dict[str, str] = {}
        for image in images:
            path = plain_image(image)
            self._whole.setdefault(path, image)
            if "/" in path:
                self._parts.setdefault(path.partition("/")[2], image)
                self._parts.setdefault(path.rpartition("/")[2], image)

    def find(self, image: str) -> str | None:
        """The image as the table writes it, or None."""
        path = plain_image(image)
        for found in (self._whole.get(path), self._parts.get(path), self._whole.get(path.rpartition("/")[2])):
            if found is not None:
                return found
        return None


def plain_image(image: str) -> str:
    """The path of an image without the extension of an image file."""
    path = image.strip()
    stem, dot, extension = path.rpartition(".")
    return stem if dot and extension.lower() in ("png", "jpg", "jpeg", "dcm", "dicom") else path
