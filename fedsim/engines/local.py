"""The local engine: all jobs on this machine's CPU or GPU, many clients' models as one matrix."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from fedsim.clock import Ints
from fedsim.engines.plans import Plan, choose, keep_large_blocks
from fedsim.errors import FedsimError, RunError, SettingError, blame
from fedsim.keys import fold
from fedsim.local import Local
from fedsim.part import Part, setting
from fedsim.rows import Rows
from fedsim.strategy import Strategy
from fedsim.task import Task


class Engine(Part):
    """Where jobs are computed; never changes the question, only who computes it."""

    slot: ClassVar[str] = "engine"
    default: ClassVar[str] = "local"

    def start(self, task: Task, strategy: Strategy, seed: int) -> "Worker":
        """Ready to compute. Raises SettingError where the machine or the model does not allow what is set."""
        raise NotImplementedError


@dataclass(frozen=True)
class LocalEngine(Engine):
    """This machine. Results depend on plan, chunk, threads and device in the last bits, so they are part of the run's record."""

    name: ClassVar[str] = "local"

    device: str = setting("auto", "`cpu`, `cuda`, `cuda:1` ...; auto: cuda where there is one")
    plan: Literal["auto", "stacked", "looped"] = setting("auto", "how gradients of many models are computed")
    threads: int | Literal["auto"] = setting("auto", "threads of torch; auto: 1, which small models are fastest with", ge=1)
    chunk: int | Literal["auto"] = setting("auto", "models computed together; auto: 100, less for large models", ge=1)

    def start(self, task: Task, strategy: Strategy, seed: int) -> "Worker":
        cuda = torch.cuda.is_available()
        name = ("cuda" if cuda else "cpu") if self.device == "auto" else self.device
        try:
            task = task.move(torch.device(name))
        except (RuntimeError, AssertionError) as error:
            raise SettingError("engine.device", f"`{name}` can't be used here: {str(error).splitlines()[0]}") from error
        threads = 1 if self.threads == "auto" else self.threads
        torch.set_num_threads(threads)
        keep_large_blocks()
        chunk = self.chunk if self.chunk != "auto" else _chunk(task, strategy)
        try:
            plan, reason = choose(task, strategy.loss, self.plan, chunk, threads)
        except ValueError as error:
            raise SettingError("engine.plan", str(error)) from error
        return Worker(
            task, strategy, plan, seed, {"device": name, "plan": plan.name, "plan_reason": reason, "threads": threads, "chunk": chunk}
        )


def _chunk(task: Task, strategy: Strategy, budget: int = 1 << 30) -> int:
    """100 rows, or fewer where fewer work at once or their models and batches would take more than the budget in bytes."""
    sample = task.inputs[0].numel() * strategy.train.batch_size(task)
    wanted = min(100, strategy.schedule.concurrency_limit(task.nodes))
    return max(1, min(wanted, budget // (4 * (6 * task.layout.size + 4 * sample))))


@dataclass(frozen=True)
class Jobs:
    """Work to do, one row each: node, turn (the node's own job count, from 1) and round int64 [m]; what was heard, and memories."""

    node: Ints
    turn: Ints
    round: Ints
    received: Rows
    memory: Rows
    link: Rows | None  # memory of the uplink; None: fresh


@dataclass(frozen=True)
class Replies:
    """What jobs [m] send, as the hearer decodes it, and memories of after."""

    parts: Rows
    memory: Rows
    link: Rows


class Worker:
    """Computes jobs: a pure function of their rows, whatever else is computed with them."""

    keeps: ClassVar[tuple[str, ...]] = ("steps_done",)

    def __init__(self, task: Task, strategy: Strategy, plan: Plan, seed: int, about: dict[str, Any]) -> None:
        self.task, self.strategy, self.plan, self.seed, self.about = task, strategy, plan, seed, about
        self.chunk: int = about["chunk"]
        self.device = task.init.device
        self.steps_done = 0

    def compute(self, jobs: Jobs) -> Replies:
        """All jobs, in chunks of rows with falling numbers of steps. Raises RunError where a strategy's or model's code does."""
        nodes = torch.from_numpy(jobs.node).to(self.device)
        steps = self.strategy.train.plan(self.task.counts[nodes], self.strategy.train.batch_size(self.task))[0]
        self.steps_done += int(steps.sum())
        order = torch.argsort(steps, descending=True, stable=True)
        sorted_already = bool((order.diff() == 1).all())
        chunks = []
        for at in torch.split(order, self.chunk):
            rows = slice(int(at[0]), int(at[-1]) + 1) if sorted_already else at
            chunks.append(self._chunk(jobs, rows, at.cpu().numpy()))
        whole = (
            chunks[0] if len(chunks) == 1 else Replies(*(_cat([getattr(c, part) for c in chunks]) for part in ("parts", "memory", "link")))
        )
        if sorted_already:
            return whole
        back = torch.argsort(order)
        return Replies(*({name: rows[back] for name, rows in part.items()} for part in (whole.parts, whole.memory, whole.link)))

    def _chunk(self, jobs: Jobs, rows: Any, at: NDArray[np.int64]) -> Replies:
        nodes, turns = jobs.node[at], jobs.turn[at]
        node, turn = torch.from_numpy(nodes).to(self.device), torch.from_numpy(turns).to(self.device)
        key = fold(self.seed, "job", node, turn)
        local = Local(self.plan, self.task, self.strategy.train, node, key, jobs.round[at])
        received, memory = _rows(jobs.received, rows, len(at)), _rows(jobs.memory, rows, len(at))
        link = None if jobs.link is None else _rows(jobs.link, rows, len(at))
        try:
            with torch.no_grad():
                parts, memory = self.strategy.local_update(received, memory, local)
                codec = self.strategy.uplink
                link = codec.init(parts) if link is None else link
                if not codec.lossless:
                    up = fold(key, "uplink")
                    parts, link = codec.decode(codec.encode(parts, link, up), link, up)
        except FedsimError:
            raise
        except Exception as error:
            some = ", ".join(map(str, nodes[:5])) + (" ..." if len(nodes) > 5 else "")
            raise RunError(f"round {int(jobs.round[at].max()) + 1}: the work of clients {some} raised {blame(error)}") from error
        return Replies(parts, memory, link)


def _cat(pieces: list[Rows]) -> Rows:
    return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}


def _rows(part: Rows, rows: Any, count: int) -> Rows:
    """The given rows; those of an expanded single row stay expanded."""
    return {name: tensor[:count] if tensor.stride(0) == 0 else tensor[rows] for name, tensor in part.items()}
