"""The code in docs/imitate.md runs as it is printed, and files that the README and docs name exist."""

import re
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


def test_every_piece_of_imitate_is_callable_as_documented():
    names = {}
    for block in re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "imitate.md").read_text(), re.DOTALL):
        exec(block, names)
    assert names["tokens"].shape == (4, 446, 256)
    assert names["in_evaluation"].shape == names["in_training"].shape == (4, 512)
    for value in (names["value"], names["plain"], names["total"], *names["terms"].values()):
        assert np.isfinite(value)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_commands_of_the_first_screen():
    first_screen = (REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()[:40]
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    for command in ("demo", "test"):
        assert any(line.startswith(f"make {command} ") for line in first_screen)
        assert f"\n{command}:" in makefile
