"""Where things live: files stay small, each says what it holds, and what pages tell a reader of the code is true."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(file for room in ("fedsim", "strategies") for file in (ROOT / room).rglob("*.py") if "_pb2" not in file.name)
EXTENSIONS = ("stream", "replica", "privacy", "private", "buffer", "statistic", "liar", "attack", "lost", "losses", "admission", "account")


def lines(file: Path) -> int:
    return len(file.read_text().splitlines())


def test_files_are_small_and_say_what_they_hold() -> None:
    assert {file.name: lines(file) for file in FILES if lines(file) > 300} == {}
    assert [file for file in FILES if not ast.get_docstring(ast.parse(file.read_text()))] == []


def test_the_federation_knows_no_extension() -> None:
    text = (ROOT / "fedsim/federation/federation.py").read_text().lower()
    assert [word for word in EXTENSIONS if word in text] == []


def test_a_readers_path_through_the_core_is_short() -> None:
    path = re.search(r"To read the core, take (.*?) in this order", (ROOT / "docs/how-it-works.md").read_text(), re.DOTALL)
    assert path
    files = [ROOT / "fedsim" / name for name in re.findall(r"`([^`]+)`", path[1])]
    assert 1 < len(files) <= 6 and sum(map(lines, files)) <= 1200


@pytest.mark.parametrize("page", ["docs/how-it-works.md", "docs/own-parts.md", "CONTRIBUTING.md"])
def test_files_that_pages_name_are_there(page: str) -> None:
    named = set(re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.py)`", (ROOT / page).read_text()))
    assert named and [name for name in named if not any((base / name).is_file() for base in (ROOT, ROOT / "fedsim"))] == []
