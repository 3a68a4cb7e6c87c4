"""What `fedsim serve` does around a run: its folder, the network, progress, tracking and the closing table."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from fedsim.commands.experiment import Planned, work_on
from fedsim.deploy.serve import Service, broken_off, build
from fedsim.deploy.telling import Logged
from fedsim.run.building import Tasks
from fedsim.run.resume import reload, reopen
from fedsim.run.runfolder import make_upper
from fedsim.scenario.loader import Loaded
from fedsim.world import World

UNUSED = ("compute", "network", "availability", "faults", "energy")  # of the world, in a deployment


def execute(loaded: Loaded, root: Path, listen: list[str], identity: Any, quiet: bool, command: str) -> int:
    """One run to its end; the exit code. Raises FedsimError where it can't be started."""
    tasks, notes = Tasks(), list[str]()
    folder = broken_off(root, loaded)
    run = build(loaded if folder is None else replace(reload(folder), folder=""), tasks)
    if folder is None:
        folder = make_upper(root, loaded.scenario.name, loaded.hash, {}, loaded.file)
    else:
        notes = reopen(run, folder, command)

    def say(text: str) -> None:
        run.log(text)
        if not quiet:
            print(text, flush=True)

    if unused := [name for name in UNUSED if getattr(loaded.scenario.world, name) != getattr(World(), name)]:
        notes = [*notes, f"world.{', world.'.join(unused)}: unused here, where machines, links and faults are real ones"]
    service = Service(run, folder, listen, identity, say)
    with Logged(say):
        addresses = service.start()
        for note in notes:
            say(note)
        secure = "TLS" if identity.credentials() else "plaintext"
        say(f"{folder}: waiting at {', '.join(addresses)} ({secure}) for {service.quorum} of {run.fed.nodes} nodes")
        code = 1
        try:
            code = work_on(folder, [Planned(run.loaded, run)], tasks, quiet, command)
        finally:
            info = run.writer.info if run.writer else {}
            service.stop(info.get("status", "failed"), f"the run is over: {info.get('status')}: {info.get('reason')}")
    return code
