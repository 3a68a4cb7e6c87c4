"""What `fedsim serve` does around a run: its folder, the network, progress, tracking and the closing table."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from gc import collect
from pathlib import Path
from typing import Any

from fedsim.base.errors import FedsimError
from fedsim.base.memory import give_large_blocks_back
from fedsim.commands.experiment import Planned, work_on
from fedsim.deploy.handshake import over
from fedsim.deploy.serve import Service, beginning, silent_end, undone, unused
from fedsim.deploy.telling import Logged
from fedsim.run.building import Tasks
from fedsim.run.folders import RunFolder
from fedsim.run.resume import reload, reopen
from fedsim.scenario.loader import Loaded


def execute(loaded: Loaded, root: Path, listen: list[str], identity: Any, quiet: bool, command: str, keep: bool = False) -> int:
    """One run to its end; the exit code. `keep`: replies stay in its folder. Raises FedsimError where it can't be started."""
    if folder := silent_end(root, loaded):
        return _say_the_end(replace(reload(folder), folder=""), folder, listen, identity, quiet, keep)
    give_large_blocks_back()
    folder, loaded, again = beginning(root, loaded)
    early = list[str]()
    log: Callable[[str], None] = early.append  # until there is a run that has a log

    def say(text: str) -> None:
        log(text)
        if not quiet:
            print(text, flush=True)

    if note := unused(loaded):
        say(note)
    service = Service(loaded, folder, listen, identity, say, keep)
    with Logged(say):
        try:
            run = service.build()
            collect()  # what building left may be models' worth of memory
            if not again:
                service.start()
        except FedsimError:
            if not again:
                undone(folder)
            raise
        for note in reopen(run, folder, command) if again else []:
            say(note)
        log = run.log
        code = 1
        try:
            code = work_on(folder, [Planned(run.loaded, run)], Tasks(), quiet, command)
        finally:
            info = run.writer.info if run.writer else {}
            service.stop(info.get("status", "failed"), over(info))
    return code


def _say_the_end(loaded: Loaded, folder: Path, listen: list[str], identity: Any, quiet: bool, keep: bool) -> int:
    """Workers hear of a run that has finished what its server could not say any more; the exit code. Raises FedsimError as `execute`."""
    say: Callable[[str], None] = (lambda text: None) if quiet else partial(print, flush=True)
    say(f"{folder}: has finished; its workers are told so, and the same command then begins anew")
    service = Service(loaded, folder, listen, identity, say, keep)
    with Logged(say):
        service.start()
        service.stop("finished", over(RunFolder(folder).info))
    return 0
