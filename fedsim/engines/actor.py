"""An actor: a process, perhaps of another machine, with a local engine over a share of the nodes, and what those remember."""

import os
import pickle
import platform
import socket
from collections import defaultdict
from dataclasses import dataclass
from math import inf, isinf
from time import monotonic
from typing import Any

import torch
from numpy.typing import NDArray

from fedsim.base.clock import Ints
from fedsim.base.errors import Finished, RunError, blame
from fedsim.base.rows import Rows
from fedsim.base.store import Memories
from fedsim.engines.local import LocalEngine
from fedsim.engines.parcels import Arrays, Heard, arrays, tensors, unbundled
from fedsim.engines.recall import Recall, apart, together
from fedsim.method.privacy import Privacy
from fedsim.method.strategy import Strategy
from fedsim.task.task import Task

ABOUT = ("plan", "precision", "threads", "chunk", "device")
Settled = list[tuple[str, Ints]]  # `commit` or `drop`, and whose replies


@dataclass(frozen=True)
class Setup:
    """What actors need to know of a run; `like` is one reply."""

    engine: LocalEngine
    task: Task
    strategy: Strategy
    seed: int
    privacy: Privacy | None
    like: Rows


@dataclass(frozen=True)
class Block:
    """Jobs [m] with falling numbers of steps; `left`: seconds until the run's time is up."""

    nodes: Ints
    turn: Ints
    round: Ints
    heard: Heard
    left: float


def versions() -> dict[str, str]:
    """What must be the same wherever a run is computed."""
    import ray

    from fedsim import __version__

    return {"Python": platform.python_version(), "ray": ray.__version__, "fedsim": __version__, "torch": torch.__version__}


class Copies:
    """Of other actors' shares, what their nodes remember: who dies is made anew from it."""

    def __init__(self, nodes: int, large: int) -> None:
        """Tables of more than `large` bytes lie in files."""
        self.nodes, self.large = nodes, large
        self.shares: dict[int, tuple[Memories, Memories]] = {}
        self.staged: dict[int, list[tuple[Ints, Arrays]]] = defaultdict(list)

    def stage(self, share: int, nodes: Ints, found: Arrays) -> None:
        """News of a copy, held back until all of them are here."""
        self.staged[share].append((nodes, found))

    def adopt(self, share: int, whole: bool) -> None:
        """What is staged is in the copy from now on; or else it is forgotten."""
        tables = self.shares.setdefault(share, (Memories(self.nodes, self.large), Memories(self.nodes, self.large)))
        for nodes, found in self.staged.pop(share, []) if whole else []:
            for table, rows in zip(tables, apart(tensors(found)), strict=True):
                table.put(nodes, rows)
        self.staged.pop(share, None)

    def read(self, share: int, nodes: Ints) -> Arrays:
        """What nodes of a share remember; the copy has all of these."""
        memory, links = (table.get(nodes, lambda _: {}) for table in self.shares[share])
        return arrays(together(memory, links))


class Actor:
    """Its methods are called one after the other, in the order in which the driver called them."""

    def __init__(self) -> None:
        self.recall: Recall | None = None
        self.copies = Copies(0, 0)

    def hello(self) -> tuple[dict[str, str], str, int]:
        """Versions, the machine, the process."""
        return versions(), socket.gethostname(), os.getpid()

    def begin(self, bundle: tuple[bytes, list[NDArray[Any]], list[str]]) -> dict[str, Any]:
        """A run begins; how it is computed here, or why it can't be as `error`."""
        self.recall = None
        try:
            setup: Setup = unbundled(*bundle)
            worker = setup.engine.start(setup.task, setup.strategy, setup.seed)
        except Exception as error:
            return {"error": str(error) if isinstance(error, ValueError) else blame(error)}
        worker.privacy = setup.privacy
        self.recall, self.copies = Recall(worker, worker.memory), Copies(setup.task.nodes, worker.memory)
        self.recall.like = setup.like
        return {name: worker.about[name] for name in ABOUT} | {"plan_reason": worker.about["plan_reason"]}

    def rest(self) -> None:
        """The run is over; the process stays for another."""
        self.recall, self.copies = None, Copies(0, 0)

    def work(self, words: bytes, *found: NDArray[Any]) -> Arrays | Exception:
        """What the jobs of a block send, or what they raised; `words`: what became of replies, and the block, pickled."""
        settled, block = pickle.loads(words)
        recall = self._settle(settled)
        recall.worker.ends = inf if isinf(block.left) else monotonic() + block.left
        try:
            return arrays(recall.worked(block.nodes, block.turn, block.round, block.heard.rows(found)))
        except (RunError, Finished) as error:
            return error
        except Exception as error:
            return RunError(f"the work of clients {block.nodes[:5].tolist()} raised {blame(error)}")

    # What nodes remember

    def settle(self, settled: Settled) -> None:
        """What became of replies."""
        self._settle(settled)

    def read(self, settled: Settled, nodes: Ints) -> Arrays:
        """What these nodes remember."""
        return arrays(self._settle(settled).read(nodes))

    def outstanding(self, settled: Settled, nodes: Ints) -> Arrays:
        """What nodes come to remember when their replies arrive."""
        return arrays(self._settle(settled).outstanding(nodes))

    def write(self, settled: Settled, nodes: Ints, found: Arrays) -> None:
        """Nodes remember this from now on."""
        self._settle(settled).write(nodes, tensors(found))

    def wait(self, settled: Settled, nodes: Ints, found: Arrays) -> None:
        """Nodes come to remember this when their replies arrive."""
        self._settle(settled).wait(nodes, tensors(found))

    def _settle(self, settled: Settled) -> Recall:
        assert self.recall, "no run has begun"
        for what, nodes in settled:
            (self.recall.commit if what == "commit" else self.recall.drop)(nodes)
        return self.recall

    def stage(self, share: int, nodes: Ints, found: Arrays) -> None:
        """See `Copies`."""
        self.copies.stage(share, nodes, found)

    def adopt(self, share: int, whole: bool) -> None:
        """See `Copies`."""
        self.copies.adopt(share, whole)

    def copy(self, share: int, nodes: Ints) -> Arrays:
        """What these nodes of another share remember, as the copy has it."""
        return self.copies.read(share, nodes)
