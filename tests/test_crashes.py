"""Processes that die of a signal: what is said of them, and of the runs that they leave."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from folders import simulate, write_run
from launch import TASKS, call, write

from fedsim.base.crashes import ending, held, last_words
from fedsim.report.mlflow.tracking import Follower
from fedsim.run.building import build
from fedsim.run.folders import RunFolder
from fedsim.run.runfolder import RunWriter
from fedsim.scenario import load

DYING = """
import os, pathlib, signal, sys
from fedsim.base.crashes import last_words_to
done = last_words_to(pathlib.Path(sys.argv[1]))
def fall():
    os.kill(os.getpid(), signal.SIGSEGV)
if sys.argv[2] == "after":
    done()
fall()
"""


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (-signal.SIGKILL, "was ended by SIGKILL, as systems do where memory runs out"),
        (-signal.SIGSEGV, "was ended by SIGSEGV, a fault in compiled code"),
        (-signal.SIGTERM, "was ended by SIGTERM"),
        (3, "ended unexpectedly with exit code 3"),
        (None, "ended unexpectedly"),
    ],
)
def test_an_exit_code_is_told_in_words(code: int | None, words: str) -> None:
    assert ending(code).startswith(words)


def test_a_fault_is_written_to_the_log_while_that_is_wanted(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("     0.00 s  plan stacked\n")
    assert last_words(log) == last_words(tmp_path / "missing") == ""
    for when in ("after", "within"):
        assert last_words(log) == ""
        code = subprocess.run([sys.executable, "-c", DYING, log, when], stderr=subprocess.DEVNULL, check=False).returncode
        assert code == -signal.SIGSEGV
    assert log.read_text().startswith("     0.00 s  plan stacked\nFatal Python error: Segmentation fault\n")
    assert last_words(log) == "Segmentation fault in <string>:6 (fall)"


def test_a_run_whose_process_is_gone_is_killed_and_not_running(tmp_path: Path) -> None:
    rows, records = simulate([2, 3], 1, 20, 5)
    run = RunFolder(write_run(tmp_path / "run", rows, records, status="running"))
    assert run.status == "killed"
    writer = RunWriter(run.path)
    assert run.status == "running" and held(run.path)
    writer.release()
    assert run.status == "killed" and not held(run.path)
    (run.path / "log.txt").write_text(
        'Fatal Python error: Bus error\n\nCurrent thread 0x1 (most recent call first):\n  File "/a/b.py", line 7 in f\n'
    )
    shown = call("inspect", run.path)
    assert shown.exit_code == 0
    assert f"killed (Bus error in b.py:7 (f); go on with: fedsim resume {run.path})" in shown.stdout


def test_a_run_killed_before_its_first_events_is_told_as_well(folder: Path) -> None:
    [loaded] = load(write(folder))
    run = build(loaded, TASKS)
    run.open(folder / "run")
    assert RunFolder(folder / "run").status == "running"
    assert run.writer
    run.writer.release()
    shown = call("inspect", folder / "run")
    assert shown.exit_code == 0 and "killed (its process is gone; go on with: fedsim resume run)" in shown.stdout
    assert shown.stdout.splitlines()[-1] == "  no events are written yet"


def test_a_follower_that_died_is_named_with_its_signal(tmp_path: Path) -> None:
    output = (tmp_path / "output").open("w+b")
    process = subprocess.Popen(["sh", "-c", "echo half; kill -SEGV $$"], stdin=subprocess.PIPE, stdout=output)
    assert (
        Follower(tmp_path, process, output).finish().startswith("not tracked: its process was ended by SIGSEGV, a fault in compiled code")
    )
