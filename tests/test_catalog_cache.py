"""`fedsim list` without importing what it lists: a cache that is never older than the code, and never needed."""

import subprocess
import sys
from pathlib import Path

import pytest

from fedsim.scenario import catalog, catalog_cache
from fedsim.scenario.infos import Overview, PartInfo, SettingInfo

SMALL = Overview(
    {"strategy": (PartInfo("strategy", "one", "Help.", "", "server", (SettingInfo("lr", "number", None, "step", "> 0"),)),)}, ()
)
QUICK = """import sys
from fedsim.report.listing import listing
print(listing("fedavg"))
print(*{"torch", "numpy", "pydantic"} & {*sys.modules})"""


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A cache of the test's own, and how often the overview is made."""
    calls = list[str]()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(catalog, "everything", lambda: calls.append("made") or SMALL)
    (tmp_path / "code.py").write_text("a = 1\n")
    monkeypatch.setattr(catalog_cache, "_code", lambda: iter([tmp_path / "code.py"]))
    return calls


def test_it_is_made_once_for_the_same_code(made: list[str], tmp_path: Path) -> None:
    assert catalog_cache.overview() == catalog_cache.overview() == SMALL and len(made) == 1
    (tmp_path / "code.py").write_text("a = 2\n")  # of the same size
    assert catalog_cache.overview() == SMALL and len(made) == 2
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("content", ["", "[]", '{"digest": 1}', "null", '{"digest": DIGEST, "slots": {"a": [{"name": 1}]}, "keys": []}'])
def test_a_broken_cache_is_made_anew(made: list[str], content: str) -> None:
    catalog_cache._file().parent.mkdir()
    catalog_cache._file().write_text(content.replace("DIGEST", f'"{catalog_cache._digest()}"'))
    assert catalog_cache.overview() == catalog_cache.overview() == SMALL and len(made) == 1


def test_no_cache_is_needed(made: list[str], tmp_path: Path) -> None:
    (tmp_path / "fedsim").write_text("no folder")
    assert catalog_cache.overview() == catalog_cache.overview() == SMALL and len(made) == 2


def test_listing_imports_nothing_heavy_once_it_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    known = catalog_cache.overview()
    assert known == catalog.everything() and "fedavg" in [part.name for part in known.slots["strategy"]]
    shown = subprocess.run([sys.executable, "-c", QUICK], capture_output=True, text=True, check=True).stdout
    assert shown.startswith("fedavg (strategy)") and shown.endswith("\n\n")
