"""`fedsim serve APPDIR`: a Flower app's ServerApp, on nodes that workers host."""

import json
import secrets
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from flwr.app import Context, RecordDict
from flwr.serverapp import ServerApp

from fedsim.base.address import hide
from fedsim.base.errors import FedsimError, RunError, blame
from fedsim.deploy.board import NOTHING, Board
from fedsim.flower import private
from fedsim.flower.app import App, Config, differs, part
from fedsim.flower.grid import HubGrid
from fedsim.transport.hub import Hub
from fedsim.transport.lodging import Lodging
from fedsim.transport.messages_pb2 import SCENARIO, Refusal
from fedsim.transport.objects import Store

MENDING = "put the server's copy of the app there; code never comes over the wire"


class Doorkeeper(Lodging):
    """Hands out nodes and the run's settings, and compares a worker's app with the server's."""

    def __init__(self, app: App, number: int, nodes: int, config: Config) -> None:
        told = {"app": app.name, "version": app.version, "id": number, "nodes": nodes, "config": config}
        super().__init__(f"{app.name.replace('/', '.')}-{number:016x}", json.dumps(told).encode(), nodes, "run an app")
        self.app = app

    def admit(self, session: Any, facts: bytes) -> Refusal | None:
        """None where a worker's app is the server's."""
        found: Mapping[str, Any] = json.loads(facts)
        if "refused" in found:
            return Refusal(reason=SCENARIO, cause=found["refused"], cure=MENDING)
        if found["client"] != self.app.client:
            return Refusal(reason=SCENARIO, cause=f"its ClientApp is `{found['client']}`, the server's `{self.app.client}`", cure=MENDING)
        if why := differs(self.app.files, found["files"], found["whole"]):
            return Refusal(reason=SCENARIO, cause=f"the app differs: {why}", cure=MENDING)
        return None


@dataclass
class Service:
    """One run of an app. `config` are settings of the run instead of the app's own; `start_with`: nodes that must be there first."""

    app: App
    nodes: int
    start_with: int
    config: Config
    identity: Any
    say: Callable[[str], None]
    silence: float = 60.0
    since: float | None = None  # when the ServerApp began

    def __post_init__(self) -> None:
        config = chosen(self.app, self.config)
        if not 1 <= self.start_with <= self.nodes:
            raise FedsimError(f"--start-with {self.start_with}: 1 to {self.nodes} are due, of so many nodes")
        self.config = config

    def run(self, listen: list[str]) -> None:
        """Runs the ServerApp. Raises FedsimError where an address can't be had, RunError where the ServerApp does."""
        server = part(self.app.server, self.app.folder, ServerApp)
        with self.network(listen) as (grid, addresses):
            secure = "TLS" if self.identity.credentials() else "plaintext"
            self.say(f"{self.app.name}: waiting at {', '.join(addresses)} ({secure}) for {self.start_with} of {self.nodes} nodes")
            grid.wait_for_nodes(self.start_with)
            self.since = monotonic()
            try:
                server(grid, Context(grid.run.run_id, private.SERVER, {}, RecordDict(), dict(self.config)))
            except Exception as error:
                raise RunError(f"the ServerApp raised {blame(error)}") from error

    @contextmanager
    def network(self, listen: list[str]) -> Iterator[tuple[HubGrid, list[str]]]:
        """A run's Grid, and the addresses that its workers may come to; in the end they hear that the run is over."""
        number = secrets.randbits(63)
        private.identify(number, private.SERVER)
        door = Doorkeeper(self.app, number, self.nodes, self.config)
        with tempfile.TemporaryDirectory(prefix="fedsim-") as folder:
            hub = Hub(
                Store(Path(folder)),
                door,
                listen=listen,
                credentials=self.identity.credentials(),
                identify=self.identity.identify,
                verdict=lambda job: grid.verdict(job),
                silence=self.silence,
                seen=lambda: board.seen(),
            )
            board = Board(self.app.name, "", self.nodes, hub, Path(door.run))
            board.told = self._told
            grid = HubGrid(hub, private.new_run(number, self.app.name, self.app.version, self.config), self.say)
            end = "failed"
            try:
                addresses = hub.start()
                board.start()
                yield grid, addresses
                end = "finished"
            except KeyboardInterrupt:
                end = "stopped by hand"
                raise
            finally:
                board.stop()
                hub.stop(f"the run is over: {end}", drained=True, failed=end == "failed")
                grid.close()

    def _told(self) -> dict[str, Any]:
        """How far it is, for who watches: what rounds are, the ServerApp alone knows."""
        told = NOTHING | {"round": None}
        return told if self.since is None else told | {"status": "running", "seconds": monotonic() - self.since}


def chosen(app: App, config: Config) -> Config:
    """The run config: the app's, with other values for some of its keys. Raises FedsimError for a key that it does not have,
    and for a value of another kind than the app's: a text, a number, or true or false."""
    if strange := config.keys() - app.config.keys():
        own = ", ".join(sorted(app.config)) or "none"
        raise FedsimError(f"`{min(strange)}` is no setting of the app; [tool.flwr.app.config] has {own}")
    for key, value in config.items():
        if _kind(value) != (due := _kind(app.config[key])):
            raise FedsimError(f"{key}={hide(str(value))}: {due} is due, as in the app's [tool.flwr.app.config]")
    return app.config | config


def _kind(value: object) -> str:
    return "a text in quotes" if isinstance(value, str) else "true or false" if isinstance(value, bool) else "a number"


def interruptible() -> None:
    """SIGTERM, and SIGINT where a shell in the background has it ignored, end a run as Ctrl-C does, with a goodbye to its workers."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with suppress(ValueError):  # not in the main thread
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)
