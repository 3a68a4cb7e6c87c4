"""Tracking with MLflow: a process of its own follows the run's folder, so that no state of MLflow can stop or slow a run.

`python -m fedsim.tracking FOLDER [--follow] [--uri U] [--experiment E]`
"""

import argparse
import os
import select
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import IO

from fedsim.crashes import ending
from fedsim.errors import FedsimError

INTERVAL = 2.0  # seconds between two looks into the folder
PATIENCE = 20.0  # seconds until the next attempt after a failure


@dataclass
class Follower:
    """The process that uploads a run's folder while the run goes on."""

    folder: Path
    process: subprocess.Popen[bytes]
    output: IO[bytes]

    def finish(self, timeout: float = 60.0) -> str:
        """Asks for the rest and waits at most `timeout` seconds; one line that says what is uploaded, or how to upload it later."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            code: int | None = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            code = None
            self.process.kill()
            self.process.wait()
        with self.output:
            self.output.seek(0)
            said = self.output.read().decode(errors="replace").strip().splitlines()
        if code == 0 and said:
            return f"tracked  {said[-1]}"
        why = f"MLflow took longer than {timeout:g} s" if code is None else said[-1] if said and code > 0 else f"its process {ending(code)}"
        return f"not tracked: {why}; later: fedsim track {shlex.quote(str(self.folder))}"


def start_follower(folder: Path, uri: str | None = None, experiment: str | None = None) -> Follower | None:
    """Follows a run or a sweep (its upper folder) until `finish` or the end of this process; None with `uri` `none`.

    Without `uri` or `experiment`, those of the folder's scenario.yaml and of the environment hold. Ctrl-C does not reach the process.
    """
    if uri == "none":
        return None
    command = [sys.executable, "-m", "fedsim.tracking", str(folder), "--follow"]
    command += [word for name, value in (("--uri", uri), ("--experiment", experiment)) if value for word in (name, value)]
    output = tempfile.TemporaryFile()  # noqa: SIM115 (closed by finish)
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    return Follower(folder, process, output)


def follow(folder: Path, uri: str | None, experiment: str | None) -> str:
    """Uploads again and again until the standard input ends, then a last time. Only the last failure is raised."""
    from fedsim.report.upload import UploadError, upload

    again = monotonic()
    while not select.select([sys.stdin], [], [], max(0.05, again - monotonic()))[0]:
        try:
            upload(folder, uri, experiment)
            again = monotonic() + INTERVAL
        except UploadError:
            again = monotonic() + PATIENCE
        except FedsimError:
            again = monotonic() + INTERVAL  # the run has not written its first files yet
    return upload(folder, uri, experiment)


def main(words: list[str] | None = None) -> int:
    """0 when everything is uploaded, 1 when not; the last line of the output says which and why."""
    parser = argparse.ArgumentParser(prog="python -m fedsim.tracking", description="Uploads a run's folder to MLflow.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--follow", action="store_true", help="until the standard input ends")
    parser.add_argument("--uri")
    parser.add_argument("--experiment")
    asked = parser.parse_args(words)
    from fedsim.report.upload import upload

    if asked.follow:
        os.nice(10)
    try:
        print((follow if asked.follow else upload)(asked.folder, asked.uri, asked.experiment), flush=True)
    except FedsimError as error:
        print(error, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
