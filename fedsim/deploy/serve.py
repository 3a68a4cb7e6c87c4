"""`fedsim serve`: one scenario's run with real workers, from an empty folder or from where a server before broke off."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedsim.base.errors import Finished
from fedsim.deploy.decisions import RECORD
from fedsim.deploy.handshake import Doorkeeper
from fedsim.deploy.orders import Orders
from fedsim.deploy.peers import introducer
from fedsim.deploy.reality import Reality
from fedsim.deploy.remote import Remote
from fedsim.federation.ledger import KINDS
from fedsim.run.building import Tasks, assemble
from fedsim.run.folders import RunFolder
from fedsim.run.runner import Run
from fedsim.scenario.loader import Loaded
from fedsim.transport.hub import Hub
from fedsim.transport.limits import Limits
from fedsim.transport.objects import Store


def build(loaded: Loaded, tasks: Tasks) -> Run:
    """A run whose jobs workers will compute. Raises SettingError where it can't be built or deployed."""
    if loaded.scenario.strategy.schedule.peers:
        return introducer.build(loaded, tasks)
    return assemble(loaded, tasks.get(loaded), Reality, Remote)


def broken_off(root: Path, loaded: Loaded) -> Path | None:
    """The folder of the latest run of this scenario and seed that a server broke off; None where there is none."""
    for file in sorted((root / loaded.scenario.name).glob(f"*-{loaded.hash}/{RECORD}"), reverse=True):
        run = RunFolder(file.parent)
        if run.info.get("seed") == loaded.seed:
            return None if run.status == "finished" or run.info.get("again") else file.parent
    return None


class Service:
    """The network of one run, while it is computed."""

    def __init__(self, run: Run, folder: Path, listen: list[str], identity: Any, say: Callable[[str], None]) -> None:
        """`identity` says who comes, see `transport.identity`; `say` tells people what happens."""
        assert isinstance(run.fed.flight, Remote)
        self.run, self.field, self.say = run, run.fed.flight, say
        settings = run.scenario.deploy
        self.silence, self.quorum = float(settings.silence), settings.start_with.of(run.fed.nodes)
        self.store = Store(folder / "objects")
        most = 2 * max(self.field.up_bytes, self.field.first_bytes) + 4096
        self.hub = Hub(
            self.store,
            Doorkeeper(run.loaded, run.fed.task, folder.name),
            listen=listen,
            credentials=identity.credentials(),
            identify=identity.identify,
            verdict=self.field.verdict,
            silence=self.silence,
            limits=replace(Limits(), expected=lambda job: most),
        )
        kept = RunFolder(folder).columns if (folder / "events" / "000000.parquet").exists() else None
        if kept is not None:
            self.field.kept_jobs.update(kept["job"][kept["kind"] == KINDS.index("arrival")].tolist())

    def start(self) -> list[str]:
        """The addresses it listens at. Raises FedsimError for one that can't be had."""
        self.field.idle, self.field.say = self._idle, self.say
        self.field.go_live(self.hub, Orders(self.store), self.silence, self.quorum)
        return self.hub.start()

    def stop(self, status: str, reason: str) -> None:
        """Workers hear that it is over, or that they shall wait for a server that goes on."""
        over = status != "stopped"
        self.hub.stop(reason if over else "the server was stopped", drained=over)
        self.field.decisions.close()

    def _idle(self) -> None:
        if self.run.overdue():
            raise Finished
        if self.run.report:
            self.run.report(self.run)
