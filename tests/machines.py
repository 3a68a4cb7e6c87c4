"""`fedsim serve` and `fedsim join` as processes of their own."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from launch import Forked

from fedsim.deploy.decisions import RECORD
from fedsim.run.folders import RunFolder

SCENARIO = """
task: {data: digits, partition: {name: dirichlet, nodes: 6, alpha: 0.5}, model: mlp}
strategy: scaffold
schedule: {name: rounds, cohort: 4}
train: {epochs: 2, batch: 16, lr: 0.1}
stop: {rounds: 30}
checkpoint: {every: 7 rounds}
deploy: {silence: 20 s}
"""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
    return port


if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as in the background of a shell; processes would ignore Ctrl-C, too


class Machines:
    """Processes of one test, in its folder; whatever is left is ended with it. `forked`: none of them has to import anything."""

    def __init__(self, folder: Path, forked: bool = False) -> None:
        self.folder, self.port, self.all, self.forked = folder, free_port(), dict[str, Any](), forked

    def __enter__(self) -> "Machines":
        return self

    def __exit__(self, *_: object) -> None:
        for one in self.all.values():
            if one.poll() is None:
                one.send_signal(signal.SIGCONT)
                one.kill()
            one.wait()

    def start(self, name: str, *words: str, before: Sequence[str] = (), code: str = "") -> Any:
        if self.forked:
            assert not before and not code
            self.all[name] = Forked(self.folder, *words, output=f"{name}.log", errors=f"{name}.log")
            return self.all[name]
        command = [*before, sys.executable, *(["-c", code] if code else ["-m", "fedsim"]), *words]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with (self.folder / f"{name}.log").open("a") as log:
            self.all[name] = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=subprocess.STDOUT, env=environment)
        return self.all[name]

    def serve(self, scenario: Path, *words: str) -> Any:
        return self.start("server", "serve", str(scenario), "--insecure", "--listen", f"127.0.0.1:{self.port}", *words)

    def join(self, nodes: str, *words: str, port: int | None = None) -> Any:
        where = f"127.0.0.1:{port or self.port}"
        return self.start(nodes, "join", where, "--insecure", "--nodes", nodes, "--folder", f"worker-{nodes}", *words)

    def said(self, name: str) -> str:
        file = self.folder / f"{name}.log"
        return file.read_text() if file.exists() else ""

    @property
    def run(self) -> RunFolder | None:
        """The latest run of the folder."""
        found = sorted(self.folder.glob("runs/*/*/run.json"), key=lambda file: file.stat().st_mtime)
        return RunFolder(found[-1].parent) if found else None

    @property
    def decisions(self) -> int:
        files = [*self.folder.glob(f"runs/*/*/{RECORD}")]
        return files[0].read_bytes().count(b"\n") if files else 0

    def until(self, what: Callable[[], Any], seconds: float = 180.0, names: Sequence[str] = ("server",)) -> Any:
        """What comes, waited for."""
        end = time.monotonic() + seconds
        while not (found := what()):
            told = {name: self.said(name)[-2000:] for name in self.all}
            assert time.monotonic() < end, told
            dead = [name for name in names if self.all[name].poll() is not None]
            assert not dead, {name: (self.all[name].returncode, told[name]) for name in dead}
            time.sleep(0.02)
        return found

    def ends(self, name: str, seconds: float = 240.0) -> int:
        """Its exit code."""
        try:
            code: int = self.all[name].wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError({name: self.said(name)[-3000:] for name in self.all}) from None
        return code
