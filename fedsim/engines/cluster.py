"""The engine `ray`: jobs on actors, of this machine's cores or of a cluster; the same bits as on one."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from fedsim.base.errors import SettingError
from fedsim.base.rows import Rows
from fedsim.engines.actor import ABOUT, Setup
from fedsim.engines.calls import dealt
from fedsim.engines.local import LocalEngine, MatrixEngine, Worker
from fedsim.engines.parcels import bundled
from fedsim.engines.shares import Shares
from fedsim.engines.troupe import LostError, Troupe, check
from fedsim.method.strategy import Strategy
from fedsim.settings.part import setting
from fedsim.task.task import Task


@dataclass(frozen=True)
class RayEngine(MatrixEngine):
    """Actors of Ray, each with a local engine over a share of the nodes, whose memories stay there. Results don't depend on how many."""

    name: ClassVar[str] = "ray"

    actors: int = setting(2, "processes that compute, each with its own threads", ge=1, le=4096)
    gpus: float = setting(0.0, "GPUs of each actor; 0.5: two actors share one; 0: they compute on CPUs", ge=0, le=16)
    address: str = setting(
        "auto", "`HOST:PORT` of a cluster's head; local: an own instance here; auto: RAY_ADDRESS if that is set, else local"
    )

    def alone(self) -> LocalEngine:
        shared = {name: getattr(self, name) for name in ("plan", "precision", "threads", "memory", "chunk")}
        return LocalEngine(device="cpu", processes=1, **shared)

    def start(self, task: Task, strategy: Strategy, seed: int) -> "RayWorker":
        threads = 1 if self.threads == "auto" else self.threads
        address = check(self.actors, threads, self.gpus, self.address)
        local = replace(self.alone(), plan="auto", chunk="auto") if self.gpus else self.alone()
        here = local.start(task, strategy, seed)
        worker = RayWorker(self, address, here, (task, replace(strategy, train=here.strategy.train)))
        if self.gpus or address:  # what is said there is said before a run begins
            worker.greet()
        return worker


class RayWorker(Worker):
    """Computes what is only looked at in this process, and all jobs on actors, which start with the first of them."""

    spread: ClassVar[bool] = True

    def __init__(self, engine: RayEngine, address: str, local: Worker, given: tuple[Task, Strategy]) -> None:
        about = local.about | {"engine": "ray", "actors": engine.actors, "gpus": engine.gpus}
        super().__init__(local.task, local.strategy, local.plan, local.seed, about)
        self.engine, self.address, self.given = engine, address, given
        self.troupe: Troupe | None = None

    def actors(self) -> Troupe:
        """Those of this run. Raises SettingError or HostError where they don't start."""
        if self.troupe is None:
            self.troupe = Troupe.of(self.engine.actors, self.address, self.about["threads"], self.engine.gpus)
        return self.troupe

    def greet(self) -> None:
        """Starts the actors, and learns from one how it computes. Raises SettingError where it can't."""
        troupe = self.actors()
        try:
            about = troupe.get(troupe.call(0, "begin", troupe.put(bundled(self.setup({})))))
        except LostError as error:
            raise SettingError("engine", f"an actor died before it began: {error}") from error
        if "error" in about:
            key, _, text = about["error"].partition(": ")
            raise SettingError(key if key.startswith("engine") else "engine", text)
        self.about |= about
        self.chunk = about["chunk"]

    def setup(self, like: Rows) -> Setup:
        """What actors need to know."""
        engine = replace(self.engine.alone(), device="cuda") if self.engine.gpus else self.engine.alone()
        task, strategy = self.given
        task = replace(task, given=None, known={})  # what people and this process know of it
        return Setup(engine, task, strategy, self.seed, self.privacy, like)

    def shares(self, like: Rows, remembers: int, cost: "np.ndarray[Any, Any]") -> Shares:
        """The actors with this run's nodes, dealt by the expected cost of their jobs; `remembers`: bytes of a node from job to job."""
        home = dealt(cost, self.engine.actors) if remembers else cost[:0].astype(np.int64)
        about = {name: self.about[name] for name in ABOUT}
        return Shares(self.actors(), self.setup(like), home, remembers, about, self.memory)

    def close(self) -> None:
        """Actors are free for the next run."""
        super().close()
        if self.troupe:
            self.troupe.release()
            self.troupe = None
