"""Runs for tests from outside: one small scenario of eight unequal clients, changed by settings, or through the command line."""

import multiprocessing
import multiprocessing.forkserver
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner, Result
from typer.main import get_command

from fedsim.commands.cli import app, main
from fedsim.report.checks import check_events
from fedsim.run.building import Tasks, build
from fedsim.run.folders import RunFolder
from fedsim.run.resume import reload, reopen
from fedsim.scenario import load

TEXT = """\
task: {data: digits, partition: {name: dirichlet, alpha: 0.5, nodes: 8}, model: logistic}
strategy: fedavg
train: {steps: 2, batch: 8, lr: 0.1}
schedule: {name: rounds, cohort: 4}
world:
  compute: {job: {name: linear, from: 4 s, to: 0.5 s}}
  network: {up: 1 MB/s, down: 4 MB/s, latency: 50 ms}
stop: {rounds: 4}
track: none
"""
COMMAND = get_command(app)  # made once: that takes longer than many a call
TASKS = Tasks()  # the last task is kept: runs that differ in other things share it
FORKED = multiprocessing.get_context("forkserver")  # of a process that has imported what runs need
PRELOADED = ("commands.experiment", "deploy.serve", "deploy.join", "flower.serve", "flower.work")
FORKED.set_forkserver_preload(["pytest", "launch", *(f"fedsim.{name}" for name in PRELOADED)])


def write(folder: Path, text: str = TEXT, name: str = "small.yaml") -> Path:
    """A scenario file in the folder."""
    file = folder / name
    file.write_text(text)
    return file


def simulate(folder: Path, *settings: str, text: str = TEXT, into: str = "run") -> RunFolder:
    """One run in this process without pictures and tracking, all its events checked."""
    [loaded] = load(write(folder, text), settings)
    info = build(loaded, TASKS).execute(folder / into)
    run = RunFolder(folder / into)
    assert info["status"] == "finished", info["reason"]
    failed = [check for check in check_events(run.columns, run.info, run.metrics) if not check.ok]
    assert not failed
    return run


def resumed(folder: Path, *settings: str) -> RunFolder:
    """A run that goes on in its folder, in this process."""
    loaded = reload(folder, settings)
    run = build(loaded, TASKS)
    reopen(run, folder)
    info = run.execute(folder)
    assert info["status"] == "finished", info["reason"]
    return RunFolder(folder)


def same(old: RunFolder, new: RunFolder) -> None:
    """All but the host's time is the same in bits: model, events, metrics."""
    assert old.info["model"] == new.info["model"]
    assert old.info["final"]["round"] == new.info["final"]["round"] and old.info["target_reached"] == new.info["target_reached"]
    assert old.columns.keys() == new.columns.keys()
    assert all(np.array_equal(old.columns[name], new.columns[name]) for name in old.columns)
    assert [timeless(record) for record in old.metrics] == [timeless(record) for record in new.metrics]
    assert all(check.ok for check in check_events(new.columns, new.info, new.metrics))
    assert not list(new.path.rglob("*.part"))


def timeless(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != "time/wall_seconds"}


def context(method: str | None = None, usual: Any = multiprocessing.get_context) -> Any:
    """`multiprocessing.get_context`, whose processes by `spawn` are forks, too."""
    return FORKED if method == "spawn" else usual(method)


def program(folder: Path, words: Sequence[str], output: str, errors: str) -> None:
    """What a process of its own does: `fedsim WORDS` in a folder. What it says is added to the files of these names.

    Processes that it starts are forks of the same process as itself.
    """
    server: Any = multiprocessing.forkserver._forkserver  # type: ignore[attr-defined]
    server.ensure_running = lambda: None
    multiprocessing.get_context = context
    os.chdir(folder)
    for stream, name in ((1, output), (2, errors)):
        with Path(name).open("a") as file:
            os.dup2(file.fileno(), stream)
    sys.argv[1:] = words
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as in the foreground
    main()


class Forked:
    """`fedsim WORDS` in a folder, as a fork of a process that has imported what it needs; else it is as a Popen."""

    def __init__(self, folder: Path, *words: Any, output: str = "output.txt", errors: str = "output.txt") -> None:
        self.files = folder / output, folder / errors
        self.process = FORKED.Process(target=program, args=(folder, [str(word) for word in words], output, errors))
        self.process.start()

    def poll(self) -> int | None:
        return self.process.exitcode

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code. Raises TimeoutExpired where it goes on."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired(self.process.name, timeout or 0)
        return self.process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it said until its end: output, errors. Raises TimeoutExpired where it goes on."""
        self.wait(timeout)
        output, errors = (file.read_text() for file in self.files)
        return output, errors

    def kill(self) -> None:
        self.process.kill()

    def send_signal(self, sent: signal.Signals) -> None:
        assert self.process.pid
        os.kill(self.process.pid, sent)


def call(*words: Any) -> Result:
    """`fedsim WORDS` in this process; anything but an exit is a traceback and fails the test."""
    result = CliRunner().invoke(COMMAND, [str(word) for word in words])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def refused(*words: Any) -> str:
    """The message of a call that starts nothing: exit code 2, nothing on standard output, no folder of runs."""
    result = call(*words)
    assert result.exit_code == 2, result.output
    assert not result.stdout and "Traceback" not in result.stderr
    assert not Path("runs").exists()
    return result.stderr
