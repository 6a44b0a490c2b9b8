"""Tables of docs/scaling.md: replaced row by row, and all of them measured by one command."""

import re
import sys

import pytest
import tiny

from benchmarks import tables

PAGE = """before
<!-- table speed -->
| side | ms |
|---|---|
| old | 1 |
| dense | 350 |
| ring | 399 |
<!-- end of speed -->
behind
"""


def table(measured):
    return tables.Table(("side", "ms"), ("dense", "chunked", "ring"), lambda keys: iter(measured), 1)


def test_rows_that_were_measured_are_replaced_and_the_others_stay(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    said = []
    changed = tables.update(
        page, "speed", table([["chunked", ""], ["dense", "340"]]), ["dense"], check=False, say=said.append
    )
    assert changed
    rows = "| dense | 340 |\n| chunked | |\n| ring | 399 |\n"
    assert page.read_text() == PAGE.replace("| old | 1 |\n| dense | 350 |\n| ring | 399 |\n", rows)
    assert said == ["| chunked |  |", "| dense | 340 |"]


def test_check_prints_what_differs_and_changes_nothing(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(PAGE.replace("| old | 1 |\n", ""))
    assert not tables.update(page, "speed", table([["ring", "399"]]), ["ring"], check=True)
    before = page.read_text()
    assert tables.update(page, "speed", table([["ring", "402"]]), ["ring"], check=True, say=print)
    assert page.read_text() == before
    assert "-| ring | 399 |\n+| ring | 402 |" in capsys.readouterr().out


def test_a_page_without_the_table():
    with pytest.raises(ValueError, match="no '<!-- table other -->'"):
        tables.replace(PAGE, "other", table([]), {})


def test_every_table_of_the_page_has_its_measurement():
    done = tiny.run([sys.executable, "-m", "benchmarks.scaling", "--list"])
    listed = [line.split(":")[0] for line in done.stdout.splitlines()]
    page = (tiny.REPOSITORY / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert sorted(listed) == sorted(re.findall(r"<!-- table (\w+) -->", page))
    assert page.count("<!-- end of ") == len(listed)
