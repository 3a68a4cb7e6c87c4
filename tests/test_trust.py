"""A scenario is data: which code it may name, and who says so."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from launch import TEXT, call, refused, simulate, write

import fedsim
from fedsim.base.errors import ScenarioError
from fedsim.report.mlflow.tracking import start_follower
from fedsim.run.resume import reload
from fedsim.scenario import load, trust

EDIT = "task={data: {name: 'click:edit', text: x, editor: 'touch owned #'}}"
DATA = "def load(count: int = 30):\n    return {'x': [[i % 3, 1.0] for i in range(count)], 'y': [i % 3 for i in range(count)]}\n"


@pytest.fixture(autouse=True)
def _nobody_else() -> None:
    trust.trust(())


def problem(file: Path, *settings: str) -> str:
    """The one message of a scenario that can't be loaded."""
    with pytest.raises(ScenarioError) as error:
        load(file, settings)
    [found] = error.value.problems
    return found.message


@pytest.mark.parametrize("setting", ["task.data=this:s", "task.model=torch.nn:Linear", "uplink=antigravity:fly", "strategy=__main__:main"])
def test_a_module_of_elsewhere_is_not_imported(folder: Path, setting: str) -> None:
    module = setting.partition("=")[2].partition(":")[0]
    before = module in sys.modules
    message = problem(write(folder), setting)
    top = module.partition(".")[0]
    assert f"`{module}` does not lie beside the scenario" in message and f"`--trust {top}` if you trust it" in message
    assert (module in sys.modules) == before


@pytest.mark.parametrize("name", ["..", "a b", "os;sys", ""])
def test_what_is_no_modules_name_is_said(folder: Path, name: str) -> None:
    assert problem(write(folder), f"uplink='{name}:x'") == f"uplink: `{name}` is no name of a module"
    with pytest.raises(ValueError, match="no name of a module"):
        trust.trust([name])
    trust.trust(())


def test_no_command_runs_a_program_that_a_scenario_names(folder: Path) -> None:
    write(folder, TEXT.replace("data: digits", "data: {name: 'click:edit', text: x, editor: 'touch owned #'}"))
    for command in ("validate", "run", "sweep", "tune"):
        assert "`--trust click` if you trust it" in refused(command, "small.yaml")
    assert not (folder / "owned").exists()


def test_trust_is_of_one_command_and_of_what_lies_within_the_module(folder: Path) -> None:
    file = write(folder)
    trust.trust(["click"])
    assert load(file, [EDIT])[0].flat["task.data"] == "click.termui:edit"
    trust.trust(["click.term"])
    assert "`--trust click`" in problem(file, EDIT)
    assert trust.trust_options() == ["--trust", "click.term"]
    result = call("validate", "small.yaml", "uplink=click:nothing", "--trust", "click")
    assert "`click` has no `nothing`" in result.stderr
    assert "does not lie beside" in call("validate", "small.yaml", "uplink=click:nothing").stderr


def test_a_module_beside_the_scenario_lends_nothing_that_it_imported(folder: Path) -> None:
    text = "from click import edit\nfrom fedsim.report.mlflow.upload import upload\nfrom strategies.fedprox import FedProx\n"
    (folder / "mine_all.py").write_text(text + DATA)
    file = write(folder)
    assert "`click.termui` does not lie beside" in problem(file, "task.data={name: mine_all:edit}")
    assert "`fedsim.report.mlflow.upload` does not lie beside" in problem(file, "task.data={name: mine_all:upload}")
    assert load(file, ["strategy=mine_all:FedProx", "task.data=mine_all:load"])[0].flat["strategy"] == "fedprox"


def test_a_module_beside_the_scenario_opens_no_other_of_its_name(folder: Path) -> None:
    for name in ("antigravity.py", "click/termui.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(DATA)
    file = write(folder)
    assert "`antigravity` was imported from" in problem(file, "task.data=antigravity:load")
    assert "`click` was imported from" in problem(file, "task.data={name: 'click.termui:edit', editor: 'touch owned #'}")
    assert "antigravity" not in sys.modules and not (folder / "owned").exists()


def test_a_scenario_without_own_modules_leaves_the_import_path_alone(folder: Path) -> None:
    before = [*sys.path]
    load(write(folder))
    assert sys.path == before


def declare(place: Path, module: str) -> None:
    """An installed package, as the import path knows it."""
    about = place / f"{module}_made-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}-made\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[fedsim.parts]\n{module} = {module}.parts\n")


def test_packages_that_declare_themselves_may_be_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = folder / "site"
    (site / "wards_of").mkdir(parents=True)
    for name, text in (("__init__", ""), ("parts", DATA)):
        (site / "wards_of" / f"{name}.py").write_text(text)
    monkeypatch.setattr(sys, "path", [*sys.path, str(site)])
    file = write(folder)
    assert "--trust wards_of" in problem(file, "task.data=wards_of.parts:load")
    declare(site, "wards_of")
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder / "more")])
    assert load(file, ["task.data=wards_of.parts:load"])[0].flat["task.data"] == "wards_of.parts:load"


def test_a_scenarios_folder_declares_nothing(folder: Path) -> None:
    declare(folder, "click")
    declare(folder / "parts", "click")
    (folder / "mine_here.py").write_text(DATA)
    file = write(folder)
    load(file, ["task.data=mine_here:load"])  # its folder is on the import path now
    assert "--trust click" in problem(file, EDIT)


def test_code_of_another_user_needs_trust(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "mine_too.py").write_text(DATA)
    os.chown(folder / "mine_too.py", 4242, -1) if os.geteuid() == 0 else None
    file, owner = write(folder), (folder / "mine_too.py").stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    assert "belongs to another user of this machine; `--trust mine_too`" in problem(file, "task.data=mine_too:load")
    assert "mine_too" not in sys.modules
    trust.trust(["mine_too"])
    load(file, ["task.data=mine_too:load"])


def test_a_runs_folder_brings_only_its_parts(folder: Path) -> None:
    (folder / "mine_kept.py").write_text(DATA)
    run = simulate(folder, "task.data=mine_kept:load", "task.partition={name: iid, nodes: 4}")
    assert reload(run.path).flat["task.data"] == "mine_kept:load"
    file = run.path / "scenario.yaml"
    file.write_text(file.read_text().replace("mine_kept:load", "this:s"))
    for command in ("resume", "replay"):
        assert "`--trust this` if you trust it" in refused(command, "run", *(["stop.rounds=5"] if command == "resume" else []))
    assert call("inspect", "run").exit_code == 0
    assert "this" not in sys.modules


def test_a_file_of_the_working_folder_shadows_nothing_in_the_process_that_follows_a_run(folder: Path) -> None:
    for name in ("random", "argparse", "tempfile", "json"):
        (folder / f"{name}.py").write_text("open('owned', 'w')\n")
    follower = start_follower(folder / "none", "sqlite:///new.db")
    assert follower and "no run to upload" in follower.finish()
    assert not (folder / "owned").exists()
    ours = Path(fedsim.__file__).parent.rglob("*.py")
    assert not [file.name for file in ours if re.search(r'sys\.executable,(?! "-P")', file.read_text())]


def test_a_file_of_the_working_folder_shadows_nothing_in_the_command(folder: Path) -> None:
    (folder / "click.py").write_text("raise SystemExit('not the library')\n")
    done = subprocess.run([sys.executable, "-m", "fedsim", "--help"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("Usage"), done.stderr
