"""Published checksums of a download (`SHA256SUMS.txt` of PhysioNet): which files are not what was published."""

from __future__ import annotations

import os
import re
from pathlib import Path

from medvlp_jax.data.tables import Table

_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](?:\./)?(.+)")


class Checksums:
    """The SHA-256 sums of a list as `sha256sum` writes it; its paths start from its own folder.

    Raises: ValueError for a file that is not there or holds no such line, and for a line of another form.
    """

    def __init__(self, path: Path):
        if not path.is_file():
            raise ValueError(f"--checksums {path} does not exist. Give the SHA256SUMS.txt of the download.")
        self.path = path
        self._folder = os.path.join(path.parent, "") if str(path.parent) != "." else ""
        self._sums: dict[str, bytes] = {}
        self.listed = self.unlisted = 0
        with open(path, encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(filter(str.strip, file), start=1):
                match = _LINE.fullmatch(line.rstrip("\r\n"))
                if match is None:
                    raise ValueError(f"--checksums {path}, line {number} is no SHA-256 sum and a path.")
                self._sums[match[2]] = bytes.fromhex(match[1])
        if not self._sums:
            raise ValueError(f"--checksums {path} holds no line.")

    def of(self, path: str | os.PathLike[str]) -> str:
        """The published sum of a file, in hexadecimal, or "" when it is not listed. Counts both."""
        name = os.fspath(path)
        inside = name.removeprefix(self._folder)
        found = self._sums.get(inside) or self._sums.get(os.path.relpath(name, self._folder or "."))
        self.listed += found is not None
        self.unlisted += found is None
        return "" if found is None else found.hex()

    def check_table(self, table: Table) -> None:
        """Raises ValueError for a table that differs from what was published."""
        if self.of(table.path) not in ("", table.sha256):
            raise ValueError(
                f"{table.path} has another SHA-256 than {self.path} says: the download is damaged or another version. "
                "Download it again, or leave --checksums out."
            )
