"""The Tab key: what it offers, in this process and through bash, and that nothing heavy is imported for it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from launch import call
from typer.main import get_command
from typer.testing import CliRunner

from fedsim.commands.cli import app
from fedsim.commands.making import KINDS
from fedsim.scenario.catalog_cache import overview, remembered

HEAVY = ("torch", "numpy", "pydantic", "yaml", "rich", "mlflow", "pyarrow", "importlib.metadata")


def offered(*words: str, **environment: str) -> list[str]:
    """What may stand for the last of these words, as bash is told it."""
    asked = {"_FEDSIM_COMPLETE": "complete_bash", "COMP_WORDS": "\n".join(["fedsim", *words]), "COMP_CWORD": str(len(words))}
    result = CliRunner().invoke(app, [], env=asked | environment, prog_name="fedsim")
    assert result.exit_code == 0, result.output
    return result.stdout.split()


@pytest.fixture
def files(folder: Path) -> Path:
    """Scenarios, and runs of them: one alone, one of a sweep."""
    (folder / "deep").mkdir()
    for name in ("one.yaml", "two.yml", "notes.txt", "deep/er.yaml", ".hidden.yaml"):
        (folder / name).touch()
    for name in ("alone/20260101-000000-abc123", "swept/20260101-000000-aaaaaa/a-seed0", "swept/20260102-000000-aaaaaa/b-seed0"):
        (folder / "runs" / name).mkdir(parents=True)
        (folder / "runs" / name / "run.json").write_text(json.dumps({}))
    (folder / "runs/mlflow.db").touch()
    overview()  # which the user's `fedsim list` would write down
    return folder


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["resu"], ["resume"]),
        (["run", "--sm"], ["--smoke"]),
        (["run", ""], ["deep/", "one.yaml", "runs/", "two.yml"]),
        (["run", "deep/"], ["deep/er.yaml"]),
        (["validate", "one.yaml", "train.l"], ["train.lr=", "train.lr=null"]),  # two, so that no space follows the sign
        (["run", "one.yaml", "strategy", "=", "fedpr"], ["fedprox"]),  # bash takes words apart at `=`
        (["run", "one.yaml", "strategy=fedpr"], ["strategy=fedprox"]),  # other shells do not
        (["run", "one.yaml", "strategy.pull"], ["strategy.pull=", "strategy.pull=null"]),  # its default is the method's
        (["run", "one.yaml", "task.buffers", "=", "l"], ["local"]),
        (["run", "one.yaml", "world.compute.jitter.sig"], ["world.compute.jitter.sigma=", "world.compute.jitter.sigma=null"]),
        (["run", "one.yaml", "nothing", "=", "a"], []),
        (["inspect", ""], ["alone", "swept"]),
        (["plot", "--runs", "runs", "al"], ["alone"]),
        (["plot", "--runs", "nowhere", ""], []),
        (["watch", "swept/"], ["swept/b-seed0"]),  # of its latest
        (["resume", "alone", "stop.ro"], ["stop.rounds=", "stop.rounds=null"]),
        (["list", "fedst"], ["fedstale"]),
        (["list", "key"], ["keys"]),
        (["new", ""], [*KINDS]),
    ],
)
def test_what_is_offered(files: Path, words: list[str], expected: list[str]) -> None:
    assert offered(*words) == expected


def test_the_sign_alone(files: Path) -> None:
    """Bash's word is the sign itself then, and click drops it."""
    assert set(offered("run", "one.yaml", "strategy", "=")) == {part.name for part in overview().slots["strategy"]}


def test_every_key_and_every_command_is_offered(files: Path) -> None:
    names = {key.name for key in overview().keys}
    found = {word.rstrip("=") for initial in {name[0] for name in names} for word in offered("run", "one.yaml", initial)}
    assert names <= found
    assert offered("") == [*get_command(app).commands]  # type: ignore[attr-defined]


def test_in_bash_without_anything_heavy(files: Path) -> None:
    """The script that `--show-completion` prints, in a bash of its own, with what the shell would set."""
    say = f"import sys, atexit; atexit.register(lambda: print({{*{HEAVY!r}}} & {{*sys.modules}}, file=sys.stderr))"
    command = f"{say}; sys.argv = ['fedsim', *sys.argv[1:]]; from fedsim.commands.cli import main; main()"
    (files / "fedsim").write_text(f"#!{sys.executable}\n{command}\n")
    (files / "fedsim").chmod(0o755)
    script = """
eval "$(_FEDSIM_COMPLETE=source_bash fedsim 2>/dev/null)"
complete -p fedsim
for words in "fedsim run one.yaml strategy = fedpro" "fedsim inspect al"; do
    COMP_WORDS=($words) COMP_CWORD=$((${#COMP_WORDS[@]}))
    COMP_WORDS=($words); COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    _fedsim_completion fedsim
    echo "${COMPREPLY[*]}"
done"""
    path = f"{files}:{os.environ['PATH']}"
    bash = shutil.which("bash")
    assert bash
    done = subprocess.run([bash, "-c", script], capture_output=True, text=True, cwd=files, env={**os.environ, "PATH": path}, check=False)
    assert done.stdout.splitlines() == ["complete -o default -F _fedsim_completion fedsim", "fedprox", "alone"], done.stderr
    assert done.stderr.splitlines() == ["set()", "set()"]


def test_without_anything_remembered_it_is_made_for_the_next_time(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Any] = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(files / "cache"))
    monkeypatch.setattr("subprocess.Popen", lambda words, **_: begun.append(words))
    assert remembered() is None
    assert offered("run", "one.yaml", "train.l") == []
    assert begun == [[sys.executable, "-P", "-m", "fedsim", "list"]]


def test_one_line_installs_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setattr("typer._completion_shared._get_shell_name", lambda: "bash")
    shown = call("--install-completion")
    assert shown.exit_code == 0 and "bash completion installed in" in shown.output
    [script] = (folder / ".bash_completions").iterdir()
    assert script.name.endswith(".sh") and str(script) in (folder / ".bashrc").read_text()
