"""Tracking with MLflow: a process of its own follows the run's folder, so that no state of MLflow can stop or slow a run.

`python -m fedsim.report.mlflow.tracking FOLDER [--follow] [--uri U] [--experiment E]`
"""

import argparse
import os
import select
import shlex
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, process_time, sleep
from typing import IO

from fedsim.base.address import hide, whole
from fedsim.base.crashes import ending
from fedsim.base.errors import FedsimError

INTERVAL, LONGEST = 2.0, 60.0  # seconds between two looks into the folder: LONGEST where a look takes more than SHARE of that
SHARE = 0.02  # of one processor, for looking
PATIENCE = 20.0  # seconds until the next attempt after a failure
WAIT = 9.0  # seconds that the end of a run waits for the upload
LINGER = 120.0  # seconds that the upload may go on by itself after the run


@dataclass
class Follower:
    """The process that uploads a run's folder while the run goes on, and for a while after it; or `why` there is none."""

    folder: Path
    process: subprocess.Popen[bytes] | None = None
    output: IO[bytes] | None = None
    linger: float = LINGER
    why: str = ""

    @property
    def later(self) -> str:
        return f"fedsim track {shlex.quote(str(self.folder))}"

    def finish(self, timeout: float | None = None) -> str:
        """Asks for the rest and waits at most `timeout` seconds (by default WAIT), or until Ctrl-C; one line: what is uploaded, or to do.

        What takes longer goes on by itself, for `linger` seconds.
        """
        if self.process is None or self.process.stdin is None or self.output is None:
            return f"not tracked: {self.why}; later: {self.later}"
        with suppress(OSError):
            self.process.stdin.close()
        try:
            code = self.process.wait(WAIT if timeout is None else timeout)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            self.output.close()
            threading.Thread(target=self.process.wait, daemon=True).start()
            return f"not tracked yet: the upload goes on by itself, for at most {self.linger:g} s; what is missing then: {self.later}"
        with self.output:
            self.output.seek(0)
            said = hide(self.output.read().decode(errors="replace")).strip().splitlines()
        if code == 0 and said:
            return f"tracked  {said[-1]}"
        why = said[-1] if said and code > 0 else f"its process {ending(code)}"
        return f"not tracked: {why}; later: {self.later}"


def start_follower(folder: Path, uri: str | None = None, experiment: str | None = None, linger: float = LINGER) -> Follower | None:
    """Follows a run or a sweep (its upper folder) until `finish` or the end of this process; None with `uri` `none`.

    Without `uri` or `experiment`, those of the folder's scenario.yaml and of the environment hold. Ctrl-C does not reach the process,
    and a password is not among its words, which everybody on the machine can read.
    """
    if uri == "none":
        return None
    command = [sys.executable, "-P", "-m", "fedsim.report.mlflow.tracking", str(folder), "--follow", "--linger", str(linger)]
    command += [word for name, value in (("--uri", hide(uri or "")), ("--experiment", experiment)) if value for word in (name, value)]
    try:
        secret = whole(uri or "")
        environment = {"MLFLOW_TRACKING_URI": secret} if hide(secret) != secret else {}
        output = tempfile.TemporaryFile()  # noqa: SIM115 (closed by finish)
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | environment,
        )
    except (OSError, ValueError) as error:
        return Follower(folder, why=str(error))
    return Follower(folder, process, output, linger)


def follow(folder: Path, uri: str | None, experiment: str | None) -> str:
    """Uploads again and again until the standard input ends, then a last time. Only the last failure is raised, if it isn't a lock.

    Looks become rarer as they take longer, and runs that are uploaded whole are not looked at again.
    """
    from fedsim.report.mlflow.store import LockedError, UploadError, quiet
    from fedsim.report.mlflow.system import Machine
    from fedsim.report.mlflow.upload import Whole, upload

    quiet()
    import mlflow  # noqa: F401 (seconds, which are no look's)

    again, machine, whole = monotonic(), Machine(), Whole()
    while not select.select([sys.stdin], [], [], max(0.05, again - monotonic()))[0]:
        began = process_time()
        try:
            machine.look()
            upload(folder, uri, experiment, machine, whole)
            again = monotonic() + min(LONGEST, max(INTERVAL, (process_time() - began) / SHARE))
        except UploadError:
            again = monotonic() + PATIENCE
        except FedsimError:
            again = monotonic() + INTERVAL  # the run has not written its first files yet
    while True:
        try:
            return upload(folder, uri, experiment, machine, whole)
        except LockedError:
            sleep(INTERVAL)


def end_after(seconds: float) -> None:
    """Ends this process so long after the standard input has, whatever it hangs at."""

    def watch() -> None:
        ended = select.poll()
        ended.register(sys.stdin.fileno(), select.POLLHUP)  # nothing is ever written to it
        ended.poll()
        sleep(seconds)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(words: list[str] | None = None) -> int:
    """0 when everything is uploaded, 1 when not; the last line of the output says which and why."""
    parser = argparse.ArgumentParser(prog="python -m fedsim.report.mlflow.tracking", description="Uploads a run's folder to MLflow.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--follow", action="store_true", help="until the standard input ends")
    parser.add_argument("--linger", type=float, default=LINGER, help="for at most so many seconds after that")
    parser.add_argument("--uri")
    parser.add_argument("--experiment")
    asked = parser.parse_args(words)
    from fedsim.report.mlflow.upload import upload

    if asked.follow:
        os.nice(10)
        end_after(asked.linger)
    try:
        print((follow if asked.follow else upload)(asked.folder, asked.uri, asked.experiment), flush=True)
    except Exception as error:  # of a damaged folder, for example: one line, in which no address has its password
        print(hide(str(error) if isinstance(error, FedsimError) else f"{type(error).__name__}: {error}".splitlines()[0]), flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
