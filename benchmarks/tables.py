"""Tables of measurements inside a Markdown page, between markers, replaced row by row.

<!-- table speed -->
| side | ms |
|---|---|
| dense | 350 |
<!-- end of speed -->
"""

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple


class Table(NamedTuple):
    """One table. Rows are known by their first cell.

    header: its column names. keys: first cells, in order. measure(keys): yields finished rows, their first cell first.
    seconds: about what one row takes on two quiet cores.
    """

    header: tuple[str, ...]
    keys: tuple[str, ...]
    measure: Callable[[Sequence[str]], Iterator[Sequence[str]]]
    seconds: int


def replace(text: str, name: str, table: Table, rows: dict[str, Sequence[str]]) -> str:
    """The page with these rows in table `name`; rows that were not measured stay as they are, unknown ones go.

    Raises: ValueError when the page has no place for the table.
    """
    pattern = re.compile(rf"(<!-- table {name} -->\n)(.*?)(<!-- end of {name} -->)", re.DOTALL)
    found = pattern.search(text)
    if not found:
        raise ValueError(f"The page has no '<!-- table {name} -->' ... '<!-- end of {name} -->'.")
    present = {line.split("|")[1].strip(): line for line in found[2].splitlines()[2:] if line.startswith("|")}
    present |= {key: _line(row) for key, row in rows.items()}
    lines = [_line(table.header), "|" + "---|" * len(table.header), *(present[k] for k in table.keys if k in present)]
    return text[: found.start(2)] + "\n".join(lines) + "\n" + text[found.end(2) :]


def update(page: Path, name: str, table: Table, keys: Sequence[str], *, check: bool, say=print) -> bool:
    """Measures rows of a table and writes each into the page as soon as it is there.

    Args: check: leave the page alone and print what would change.
    Returns: whether anything differs from the page.
    """
    changed, text = False, page.read_text(encoding="utf-8")
    for row in table.measure(keys):
        say("| " + " | ".join(row) + " |")
        before = text if check else page.read_text(encoding="utf-8")
        text = replace(before, name, table, {row[0]: row})
        changed = changed or text != before
        if not check:
            page.write_text(text, encoding="utf-8")
    if check:
        before = page.read_text(encoding="utf-8").splitlines(keepends=True)
        for line in difflib.unified_diff(before, text.splitlines(keepends=True), page.name, "measured", n=0):
            say(line.rstrip("\n"))
    return changed


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |".replace("|  |", "| |")
