"""`fedsim new`: what it makes passes its own test and runs, names are checked, and nothing is overwritten."""

from pathlib import Path

import pytest
from launch import call, refused

from fedsim.commands.making import KINDS, TEMPLATES, sensible


def test_what_is_made_passes_its_tests(folder: Path) -> None:
    """Each of them runs its scenario at smoke size."""
    (folder / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    for kind in KINDS:
        shown = call("new", kind, f"fine_{kind}")
        assert shown.exit_code == 0 and f"test_fine_{kind}.py  its test" in shown.stdout
        assert f"next: fedsim run fine_{kind}.yaml" in shown.stdout
    made = sorted(file.name for file in folder.glob("*fine_*"))
    assert len(made) == 3 * len(KINDS) - 1  # a scenario has no module
    for file in folder.glob("*fine_*"):
        text = file.read_text()
        assert "my_" not in text.replace("my_module", "") and "MyS" not in text and text.endswith("\n")
    assert pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(folder)]) == 0
    assert all("\n  seeds: 0..5" in Path(f"fine_{kind}.yaml").read_text() for kind in KINDS)


def test_templates_are_short() -> None:
    files = [file for file in TEMPLATES.iterdir() if file.is_file()]
    assert len(files) == 3 * len(KINDS) - 1 and all(len(file.read_text().splitlines()) <= 60 for file in files)


@pytest.mark.parametrize(
    ("name", "better"),
    [
        ("fed-mine", "fed_mine"),
        ("FedMine", "fed_mine"),
        ("fed mine.py", "fed_mine"),
        ("größe", "grosse"),
        ("3d", "my_3d"),
        ("_x__y", "x_y"),
        ("a/b", "a_b"),
        ("", "my_strategy"),
        ("方法", "my_strategy"),
        ("class", "my_class"),
        ("random", "my_random"),  # Python's comes first on the import path
        ("torch", "my_torch"),
        ("strategy", "my_strategy"),  # its class would hide the one that it derives from
    ],
)
def test_names_that_would_not_do(folder: Path, name: str, better: str) -> None:
    assert refused("new", "strategy", name).endswith(f"; did you mean `{better}`?\n")
    assert sensible("strategy", better) == better and not list(folder.iterdir())


def test_a_scenario_may_be_called_as_a_module() -> None:
    assert sensible("scenario", "random") == "random" and sensible("scenario", "Class") == "class"


def test_an_unknown_kind() -> None:
    said = refused("new", "stratgy", "mine")
    assert said == "new: `stratgy` is none of scenario, strategy, codec, topology, model, data; did you mean `strategy`?\n"


def test_nothing_is_overwritten(folder: Path) -> None:
    (folder / "test_mine.py").write_text("precious")
    assert "test_mine.py is there already; nothing was written" in refused("new", "codec", "mine")
    assert [file.name for file in folder.iterdir()] == ["test_mine.py"] and (folder / "test_mine.py").read_text() == "precious"


def test_a_folder_that_is_gone(folder: Path) -> None:
    folder.rmdir()
    assert refused("new", "model", "mine") == "new model: mine.py can't be written: No such file or directory\n"
