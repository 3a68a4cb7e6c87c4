"""The project as it is installed: version, wheel, tested versions, and a command line that starts at once."""

import re
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_string
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import fedsim

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
COMMANDS = ("run", "resume", "replay", "list", "validate", "schema", "inspect", "plot", "track", "bench")
HEAVY = ("torch", "mlflow", "matplotlib", "pyarrow", "sklearn", "flwr", "pandas")
HELP = f"""
import sys
from fedsim.commands.cli import main
sys.argv = ["fedsim", "--help"]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print("loaded", sorted(set({HEAVY}) & set(sys.modules)))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files of a freshly built wheel and their texts."""
    target = tmp_path_factory.mktemp("wheel")
    built = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(target)], cwd=ROOT, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    [file] = target.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name).decode() for name in archive.namelist()}


def test_wheel_holds_both_packages_whole_and_nothing_else(wheel: dict[str, str]) -> None:
    files = [path for package in ("fedsim", "strategies") for path in (ROOT / package).rglob("*") if path.is_file()]
    expected = {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}
    assert {name for name in wheel if ".dist-info/" not in name} == expected
    assert {"fedsim/py.typed", "strategies/py.typed"} <= expected


def test_wheel_says_who_it_is(wheel: dict[str, str]) -> None:
    info = f"fedsim_flower-{fedsim.__version__}.dist-info"
    about = message_from_string(wheel[f"{info}/METADATA"])
    assert (about["Name"], about["Version"]) == ("fedsim-flower", fedsim.__version__)
    assert (about["Requires-Python"], about["License-Expression"]) == (">=3.11", "Apache-2.0")
    assert wheel[f"{info}/entry_points.txt"].split("\n")[:2] == ["[console_scripts]", "fedsim = fedsim.commands.cli:main"]
    assert wheel[f"{info}/licenses/LICENSE"] == (ROOT / "LICENSE").read_text()


def test_what_is_installed_is_this_version() -> None:
    assert metadata.version("fedsim-flower") == fedsim.__version__
    [script] = metadata.entry_points(group="console_scripts", name="fedsim")
    assert script.value == "fedsim.commands.cli:main"


def test_each_dependency_has_a_tested_version() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    tested = dict(line.lower().split("==") for line in lines)
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    for wanted in [Requirement(text) for group in groups for text in group]:
        assert tested[wanted.name.lower()] in wanted.specifier, wanted


def test_help_names_every_command_and_loads_nothing_heavy() -> None:
    shown = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    text, loaded = shown.stdout.rsplit("loaded ", 1)
    assert loaded == "[]\n"
    assert set(COMMANDS) <= set(text.split())


def test_the_face_is_what_the_stub_says() -> None:
    stub = (Path(fedsim.__file__).parent / "__init__.pyi").read_text()
    face = {name: module for module, name in re.findall(r"^from fedsim\.([\w.]+) import \w+ as (\w+)$", stub, re.M)}
    assert face == fedsim.FACE and set(face) <= set(dir(fedsim))
    assert fedsim.Strategy.__module__ == "fedsim.method.strategy" and callable(fedsim.setting)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        fedsim.nothing  # noqa: B018
