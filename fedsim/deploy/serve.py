"""`fedsim serve`: one scenario's run with real workers, from an empty folder or from where a server before broke off."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from shutil import rmtree
from time import monotonic, sleep
from typing import Any

from fedsim.base.errors import FedsimError, Finished, SettingError
from fedsim.base.files import write_json
from fedsim.base.text import duration
from fedsim.deploy import own
from fedsim.deploy.board import Board
from fedsim.deploy.decisions import RECORD
from fedsim.deploy.handshake import Doorkeeper
from fedsim.deploy.network import Network
from fedsim.deploy.orders import Orders
from fedsim.deploy.peers import introducer
from fedsim.deploy.reality import Reality
from fedsim.deploy.remote import Remote
from fedsim.deploy.telling import Telling
from fedsim.federation.field import least_and_most
from fedsim.federation.ledger import KINDS
from fedsim.run.building import Tasks, assemble
from fedsim.run.folders import RunFolder
from fedsim.run.resume import reload
from fedsim.run.runfolder import make_upper
from fedsim.run.runner import Run
from fedsim.scenario.loader import Loaded
from fedsim.task.task import Task
from fedsim.transport.hub import Hub
from fedsim.transport.limits import Limits
from fedsim.transport.objects import Store
from fedsim.world import World

MANY = 1000  # samples of a node that has not told how many
COUNTED = ("train", "privacy", "stop.epsilon")  # settings that may or may not do, by how many samples there are
OBJECTS = "objects"  # in a run's folder, until all is said
UNUSED = ("compute", "network", "availability", "faults", "energy", "hosts")  # of the world, in a deployment


def broken_off(root: Path, loaded: Loaded) -> Path | None:
    """The folder of the latest run of this scenario and seed that a server broke off; None where there is none."""
    for file in sorted((root / loaded.scenario.name).glob(f"*-{loaded.hash}/{RECORD}"), reverse=True):
        run = RunFolder(file.parent)
        if run.info.get("seed") == loaded.seed:
            return None if run.status == "finished" or run.info.get("again") else file.parent
    return None


def silent_end(root: Path, loaded: Loaded) -> Path | None:
    """The folder of the latest run of this scenario and seed, where it has finished and its server died before all workers knew."""
    for file in sorted((root / loaded.scenario.name).glob(f"*-{loaded.hash}/{RECORD}"), reverse=True):
        run = RunFolder(file.parent)
        if run.info.get("seed") == loaded.seed:
            return file.parent if run.info.get("status") == "finished" and (file.parent / OBJECTS).exists() else None
    return None


def beginning(root: Path, loaded: Loaded) -> tuple[Path, Loaded, bool]:
    """A run's folder, the scenario as it lies there, and whether it was begun before. Raises FedsimError where it can't be made."""
    folder = broken_off(root, loaded)
    if folder is None:
        return make_upper(root, loaded.scenario.name, loaded.hash, {}, loaded.file), loaded, False
    return folder, replace(reload(folder), folder=""), True


def undone(folder: Path) -> None:
    """Of a run that never began nothing is left; the latest is the one before it."""
    rmtree(folder, ignore_errors=True)
    latest, before = folder.parent / "latest", sorted(one.name for one in folder.parent.glob("2*"))
    with suppress(OSError):
        latest.unlink()
        latest.symlink_to(before[-1]) if before else folder.parent.rmdir()


def unused(loaded: Loaded) -> str:
    """What is said of parts of the world that real machines have anyway; "" where none are set."""
    names = [name for name in UNUSED if getattr(loaded.scenario.world, name) != getattr(World(), name)]
    return f"world.{', world.'.join(names)}: unused here, where machines, links and faults are real ones" if names else ""


class Service:
    """The network of one run: first who comes, then, once it is built, what is computed."""

    def __init__(
        self, loaded: Loaded, folder: Path, listen: list[str], identity: Any, say: Callable[[str], None], keep: bool = False
    ) -> None:
        """`identity` says who comes, see `transport.identity`; `say` tells people what happens; `keep`: replies stay in the folder.
        Raises SettingError for a scenario that can't be deployed."""
        self.loaded, self.folder, self.say, self.keep = loaded, folder, say, keep
        self.own = own.known(folder)
        self.task = self._task()
        self.door = Doorkeeper(loaded, self.task, folder, self.own if own.is_own(loaded) else None)
        self.field: Remote | None = None
        self.most = 0  # bytes of a job's reply
        settings = loaded.scenario.deploy
        self.silence, self.quorum = float(settings.silence), settings.start_with.of(self.task.nodes)
        self.store, self.addresses = Store(folder / OBJECTS), list[str]()
        self.listening = 0.0  # since when, by the host's clock
        self.hub: Network = self._network(listen, identity)
        self.board = Board(loaded.scenario.name, loaded.label, self.task.nodes, self.hub, folder)

    def _network(self, listen: list[str], identity: Any) -> Network:
        """What carries orders and replies; `carrier` says so."""
        hub = Hub(
            self.store,
            self.door,
            listen=listen,
            credentials=identity.credentials(),
            identify=identity.identify,
            verdict=self._verdict,
            silence=self.silence,
            limits=replace(Limits(), expected=lambda job: self.most),
            seen=lambda: self.board.seen(),
        )
        self.door.lives = hub.lives
        self.carrier = "plaintext" if identity.credentials() is None else "TLS"
        return hub

    def _verdict(self, job: int) -> str | None:
        return self.field.verdict(job) if self.field else None

    def _task(self) -> Task:
        if own.is_own(self.loaded):
            return own.of_server(self.loaded, {node: size for node, (size, _) in self.own.items()})
        return Tasks().get(self.loaded)

    def start(self) -> list[str]:
        """The addresses it listens at; nothing is done a second time. Raises FedsimError for one that can't be had."""
        if not self.addresses:
            self.addresses, self.listening = self.hub.start(), monotonic()
            self.board.start()
            self.say(f"{self.folder}: at {', '.join(self.addresses)} ({self.carrier}); {self.task.nodes} nodes, begins with {self.quorum}")
        return self.addresses

    def build(self) -> Run:
        """The run, once it is known what its nodes have. One that goes on may only `start` when it has come to where it broke off,
        which it does by itself: before, nobody can say what became of a job. Raises SettingError where it can't be built, before it
        listens."""
        if own.is_own(self.loaded) and len(self.own) < self.task.nodes:
            self._try()
            self.start()
            self.say(f"waiting until all {self.task.nodes} nodes have told how many samples they have")
            while len(self.door.own or {}) < self.task.nodes:
                self._pause()
            self.own = dict(self.door.own or {})
            write_json(self.folder / own.COUNTS, {str(node): found for node, found in sorted(self.own.items())})
            self.task = self._task()
        run = self._built(self.task)
        assert isinstance(run.fed.flight, Remote)
        field = run.fed.flight
        field.come.lasting, field.down = self.keep, run.fed.down
        field.down.packs = True
        field.say, field.told_of = self.say, Telling(self.silence, self.say)
        field.idle, field.connect = lambda: _idle(run), self.start
        run.about, self.board.run = self.board.about, run
        job = self.loaded.scenario.deploy.job
        patience = None if job is None else run.fed.ticks(job)
        field.go_live(self.hub, Orders(self.store), self.silence, self.quorum, patience)
        self.most = (
            run.letter
            if isinstance(run, introducer.Introduced)
            else 2 * max(least_and_most(field.up_bytes)[1], least_and_most(field.first_bytes)[1]) + 4096
        )
        if (self.folder / "events" / "000000.parquet").exists():
            kept = RunFolder(self.folder).columns
            came = kept["kind"] == KINDS.index("arrival")
            field.kept_jobs.update(kept["job"][came].tolist())
            field.landed[kept["node"][came]] = kept["job"][came]
        self.field = field
        return run

    def _try(self) -> None:
        """Raises SettingError where it can't be built, whatever nodes have."""
        try:
            self._built(own.of_server(self.loaded, dict.fromkeys(range(self.task.nodes), MANY)))
        except SettingError as error:
            if not error.key.startswith(COUNTED):
                raise

    def _built(self, task: Task) -> Run:
        peers = introducer.without_server(self.loaded.scenario.strategy)
        if peers and self.keep:
            raise FedsimError("--keep-replies: without a server there are no replies; workers send each other what they have")
        return introducer.build(self.loaded, task) if peers else assemble(self.loaded, task, Reality, Remote)

    def _pause(self) -> None:
        """For a moment, in which workers may tell something."""
        sleep(0.1)

    def stop(self, status: str, reason: str) -> None:
        """Workers hear that it is over, or that they shall wait for a server that goes on."""
        over = status != "stopped"
        with suppress(KeyboardInterrupt):
            if status == "finished" and self.field:
                self.field.farewell()
            if over:
                self.await_workers()
        self.board.stop()
        self.hub.stop(reason if over else "the server was stopped", drained=over, failed=status == "failed")
        if self.field:
            self.field.decisions.close()
        if status == "finished":  # nobody goes on from here
            for name in (OBJECTS, *(() if self.keep else ("replies",))):
                rmtree(self.folder / name, ignore_errors=True)

    def await_workers(self) -> None:
        """Until all who are away have come back to hear that it is over; those of a server before have the silence for it."""
        said, without = False, self.field.without if self.field else ()
        while away := self.board.away(monotonic() - self.listening < self.silence or not self.addresses, without):
            if not said:
                names = ", ".join(f"{one['name']} (nodes {one['nodes']})" for one in away)
                self.say(f"waits at most {duration(self.silence)} for {names} to hear that it is over; Ctrl-C ends that")
                said = True
            try:
                self.start()
            except FedsimError as error:
                return self.say(f"workers that are away can't be told that it is over: {error}")
            self._pause()


def _idle(run: Run) -> None:
    if run.overdue():
        raise Finished
    if run.guard.asked and not run.fed.flight.count and isinstance(run.fed.flight, Remote) and not run.fed.flight.host:
        raise KeyboardInterrupt  # nobody is there, and nothing will come of which a checkpoint could be written
    if run.report:
        run.report(run)
