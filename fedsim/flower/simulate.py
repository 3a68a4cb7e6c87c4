"""`fedsim flower`: a Flower app in a simulated world, and its run's folder."""

import logging
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from time import monotonic
from typing import Any

from flwr.app import ArrayRecord, Context, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedsim.base.address import hide
from fedsim.base.clock import FOREVER
from fedsim.base.errors import FedsimError, RunError, blame
from fedsim.base.files import whole
from fedsim.base.text import clock, counted, duration, percent, size
from fedsim.base.visible import is_folder_name, one_line
from fedsim.federation.ledger import Ledger
from fedsim.flower import private
from fedsim.flower.app import App, Config, part
from fedsim.flower.clients import Cast, Clients, Here, Pool, seed
from fedsim.flower.course import Course
from fedsim.flower.nodes import Facts
from fedsim.flower.pretence import virtual_time
from fedsim.flower.serve import chosen
from fedsim.flower.settings import Around
from fedsim.flower.virtual import Ended, VirtualGrid
from fedsim.run.crossing import crossing
from fedsim.run.runfolder import RunWriter

RUN = 1  # Flower's number of it
FLUSH_SECONDS, FLUSH_EVENTS = 60.0, 500_000


@dataclass
class Simulation:
    """One run of an app in a world. `config` are settings over the app's own; `processes`: ClientApps run in so many others, 0: here.

    Raises FedsimError where the app or the world can't be had.
    """

    app: App
    nodes: int
    around: Around
    config: Config
    processes: int = 0
    serialize: bool = False
    measured: bool = False
    report: Callable[["Simulation"], None] = lambda one: None
    records: list[dict[str, Any]] = field(default_factory=list)
    reason: str = ""

    def __post_init__(self) -> None:
        self.config = chosen(self.app, self.config)
        private.identify(RUN, private.SERVER)
        self.nature = self.around.nature()
        self.ledger = Ledger(per_second=self.nature.per_second, energy=self.around.world.energy is not None)
        self.server = self._server()
        self.client = part(self.app.client, self.app.folder, ClientApp)
        if not is_folder_name(self.name):
            raise FedsimError(f"{self.app.folder / 'pyproject.toml'}: `{one_line(self.name)}` can't be the name of a run's folder")
        self.hash = self.around.hash(self.app, self.nodes, self.config)
        self.began = self.flushed = monotonic()
        self.writer: RunWriter | None = None

    @property
    def name(self) -> str:
        return self.app.name.rpartition("/")[2]

    @property
    def line(self) -> str:
        """`tiny  round 12  3:20/1:00:00  81.2 %  3.1 MB  240 messages`"""
        stop, last = self.around.stop.seconds, self.records[-1] if self.records else {}
        words = [self.name, f"round {self.course.version}", clock(self.grid.seconds) + (f"/{clock(float(stop))}" if stop else "")]
        words += [percent(last["test/accuracy"])] if "test/accuracy" in last else []
        return "  ".join([*words, size(self.ledger.bytes), counted(self.grid.told, "message")])

    def _server(self) -> ServerApp:
        found = part(self.app.server, self.app.folder, ServerApp)
        if not private.has_main(found):
            raise FedsimError(
                f"the ServerApp `{self.app.server}` is made of `server_fn`: its threads can't be put on a virtual clock; one with "
                "`@app.main()` is due"
            )
        return found

    def execute(self, folder: Path, command: str = "") -> dict[str, Any]:
        """Runs the ServerApp to its end and keeps all in the folder; run.json's content. Errors end as status `failed`.

        Raises FedsimError where the folder can't be begun.
        """
        self.writer = writer = self._begin(folder, command)
        cast = Cast(RUN, self.nodes, self.config, self.around.seed)
        clients: Clients = Pool(self.app, cast, self.processes) if self.processes else Here(self.client, cast, self.serialize)
        course = Course(self.ledger, lambda: self.grid.now, self._record)
        stop = self.around.stop.seconds
        end = FOREVER if stop is None else round(stop * self.nature.per_second)
        facts = Facts(self.nature, self.measured, end, writer.log, self._moved)
        run = private.new_run(RUN, self.app.name, self.app.version, self.config)
        self.grid, self.course = VirtualGrid(run, facts, clients, self.ledger, course), course
        context = Context(RUN, private.SERVER, {}, RecordDict(), dict(self.config))
        course.state = context.state
        self.began = self.flushed = monotonic()
        status = "failed"
        try:
            with logged(writer), course.watching(), virtual_time(self.grid, self.app.folder, lambda: clients.working):
                self._serve(context)
            status, self.reason = "finished", self.reason or "the ServerApp's end"
        except KeyboardInterrupt:
            status, self.reason = "stopped", "by hand"
        except FedsimError as error:
            self.reason = str(error)
        except (Exception, SystemExit) as error:
            self.reason = f"the ServerApp raised {blame(error)}"
            with suppress(RunError):
                writer.log(traceback.format_exc().rstrip())
        finally:
            info = self._close(status, clients)
        return info

    def _serve(self, context: Context) -> None:
        seed(self.around.seed)
        try:
            self.server(self.grid, context)
        except Ended:
            assert self.around.stop.seconds is not None
            self.reason = duration(float(self.around.stop.seconds))
        except SystemExit as error:
            if error.code not in (None, 0):
                raise

    def _begin(self, folder: Path, command: str) -> RunWriter:
        """The files that a run has from its start."""
        writer = RunWriter(folder)
        writer.hold_room()
        options = {name: "true" for name in ("serialize", "measured") if getattr(self, name)}
        (folder / "scenario.yaml").write_text("\n".join(self.around.lines(self.app, self.nodes, self.config, options)) + "\n")
        config = {name: hide(value) if isinstance(value, str) else value for name, value in self.config.items()}
        app: dict[str, Any] = {"app": self.app.name, "version": self.app.version, "server": self.app.server, "client": self.app.client}
        app |= {"folder": str(self.app.folder.resolve()), "config": config, "measured": self.measured, "processes": self.processes}
        groups = {name: [ids.start, ids.stop] for name, ids in self.around.people.groups.items()}
        facts = {"name": self.name, "label": f"seed {self.around.seed}", "variant": "", "seed": self.around.seed, "changed": {}}
        facts |= {"hash": self.hash, "target": self.around.evaluate.target, "nodes": self.nodes, "peers": False, "groups": groups}
        writer.begin(facts | {"tick": self.nature.per_second, "flower": app, "command": command})
        self.ledger.folder = folder / "events"
        for setting, note in self.nature.notes.items():
            writer.log(f"world.{setting}: {note}")
        return writer

    def _record(self, metrics: dict[str, float]) -> None:
        """An evaluation."""
        assert self.writer
        version, ledger = self.course.version, self.ledger
        ledger.add("evaluate", time=self.grid.now, version=version)
        record = {"round": version, "version": version, "time/seconds": self.grid.seconds, "time/wall_seconds": monotonic() - self.began}
        self.records.append(record | ledger.totals() | metrics)
        self.writer.metrics(self.records[-1])
        if monotonic() - self.flushed > FLUSH_SECONDS or ledger.used > FLUSH_EVENTS:
            ledger.flush()
            self.flushed = monotonic()
        self.report(self)

    def _moved(self) -> None:
        self.report(self)

    def _close(self, status: str, clients: Clients) -> dict[str, Any]:
        """Writes what is still to write; run.json's content."""
        assert self.writer
        writer, wall = self.writer, monotonic() - self.began
        clients.close()
        writer.make_room()
        found: dict[str, Any] = {}
        try:
            self.course.close()
            self.ledger.flush()
            if self.course.result:
                found["model"] = kept(self.course.result, writer.folder / "model.safetensors")
        except RunError as error:
            status, self.reason = ("failed", str(error)) if status == "finished" else (status, self.reason)
        evaluate = self.around.evaluate
        found |= {"wall_seconds": wall, "target_reached": crossing(self.records, evaluate.target, evaluate.smooth)}
        found |= {"final": self.records[-1] if self.records else {}, "again": status == "failed", "messages": self.grid.told}
        found["errors"] = {str(code): count for code, count in sorted(self.grid.errors.items()) if count}
        with suppress(RunError):
            writer.log(f"{status}: {self.reason}")
            writer.update(status=status, reason=self.reason, **found)
        writer.release()
        return writer.info


def kept(arrays: ArrayRecord, file: Path) -> str:
    """Writes a model's arrays; their hash. Raises RunError where it can't be written."""
    from safetensors.numpy import save_file

    found = {name: array.numpy() for name, array in arrays.items()}
    with whole(file) as draft:
        save_file({name: array.copy() for name, array in found.items()}, draft)
    digest = sha256()
    for name, array in sorted(found.items()):
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode() + array.tobytes())
    return digest.hexdigest()


class _Lines(logging.Handler):
    """Flower's log into the run's."""

    def __init__(self, writer: RunWriter) -> None:
        super().__init__()
        self.writer, self.last = writer, ""

    def emit(self, record: logging.LogRecord) -> None:
        if (text := record.getMessage().strip()) and text != self.last:  # who waits says so again and again
            self.last = text
            with suppress(RunError):
                self.writer.log(text)


@contextmanager
def logged(writer: RunWriter) -> Iterator[None]:
    """Meanwhile what Flower and the app say through Flower's logger goes to log.txt alone."""
    logger = logging.getLogger("flwr")
    usual, logger.handlers = logger.handlers, [_Lines(writer)]
    try:
        yield
    finally:
        logger.handlers = usual
