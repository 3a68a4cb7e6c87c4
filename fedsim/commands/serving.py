"""What `fedsim serve` does around a run: its folder, the network, progress, tracking and the closing table."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedsim.commands.experiment import Planned, work_on
from fedsim.deploy.serve import Service, broken_off
from fedsim.deploy.telling import Logged
from fedsim.run.building import Tasks
from fedsim.run.resume import reload, reopen
from fedsim.run.runfolder import make_upper
from fedsim.scenario.loader import Loaded
from fedsim.world import World

UNUSED = ("compute", "network", "availability", "faults", "energy", "hosts")  # of the world, in a deployment


def execute(loaded: Loaded, root: Path, listen: list[str], identity: Any, quiet: bool, command: str) -> int:
    """One run to its end; the exit code. Raises FedsimError where it can't be started."""
    folder = broken_off(root, loaded)
    again = folder is not None
    if folder is None:
        folder = make_upper(root, loaded.scenario.name, loaded.hash, {}, loaded.file)
    else:
        loaded = replace(reload(folder), folder="")
    early = list[str]()
    log: Callable[[str], None] = early.append  # until there is a run that has a log

    def say(text: str) -> None:
        log(text)
        if not quiet:
            print(text, flush=True)

    if unused := [name for name in UNUSED if getattr(loaded.scenario.world, name) != getattr(World(), name)]:
        say(f"world.{', world.'.join(unused)}: unused here, where machines, links and faults are real ones")
    service = Service(loaded, folder, listen, identity, say)
    with Logged(say):
        if not again:
            service.start()
        run = service.build()
        for note in reopen(run, folder, command) if again else []:
            say(note)
        log = run.log
        code = 1
        try:
            code = work_on(folder, [Planned(run.loaded, run)], Tasks(), quiet, command)
        finally:
            info = run.writer.info if run.writer else {}
            service.stop(info.get("status", "failed"), f"the run is over: {info.get('status')}: {info.get('reason')}")
    return code
