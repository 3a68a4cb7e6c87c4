"""The local engine: all jobs on this machine's CPU or GPU, many clients' models as one matrix."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from fedsim.base.clock import Ints
from fedsim.base.devices import current, enough, listed, room_on, sent, set_arithmetic
from fedsim.base.errors import FedsimError, Finished, RunError, SettingError, blame, placed
from fedsim.base.keys import fold, fold_array
from fedsim.base.memory import keep_large_blocks
from fedsim.base.rows import BUFFERS, parted
from fedsim.engines.hands import Hands
from fedsim.engines.jobs import Carry, Jobs, Replies, carried, owned, part, put, title
from fedsim.engines.processes import Pool
from fedsim.gradients.choose import affordable, choose, processes, row_bytes, rows_at_once
from fedsim.gradients.looped import Looped
from fedsim.gradients.plan import Plan
from fedsim.gradients.stacked import Stacked
from fedsim.method.contract import hint, memory_of, read_only, received_of, replied
from fedsim.method.local import Local
from fedsim.method.moments import beside, keeping, kept
from fedsim.method.strategy import Strategy
from fedsim.method.train import Train
from fedsim.settings.part import Part, setting
from fedsim.settings.values import Bytes
from fedsim.task.loss import total
from fedsim.task.task import Task

BRIEF = 100  # steps
MEMORY = 1 << 30  # bytes for models and batches, where nothing else is set


class Engine(Part):
    """Where jobs are computed; never changes the question, only who computes it."""

    slot: ClassVar[str] = "engine"
    default: ClassVar[str] = "local"
    modules: ClassVar[tuple[str, ...]] = ("fedsim.engines.cluster",)

    def start(self, task: Task, strategy: Strategy, seed: int) -> "Worker":
        """Ready to compute. Raises SettingError where the machine or the model does not allow what is set."""
        raise NotImplementedError


@dataclass(frozen=True)
class MatrixEngine(Engine):
    """Models as rows. Results depend on plan, chunk, threads and device in the last bits, so they are part of the run's record."""

    abstract: ClassVar[bool] = True

    plan: Literal["auto", "stacked", "grouped", "unfolded", "looped", "compiled", "cuda_graphs"] = setting(
        "auto",
        "how gradients of many models are computed; auto: stacked, or looped where that is faster or stacking impossible; "
        "stacked convolutions are grouped ones or, of small outputs, unfolded (patches times kernels), or all one way",
    )
    precision: Literal["float32", "tf32", "bfloat16", "float64"] = setting(
        "float32",
        "tf32 (on a GPU), bfloat16: of the products within a model, rows, losses and steps stay float32; float64: of all, data included",
    )
    threads: int | Literal["auto"] = setting("auto", "threads of torch; auto: 1, which small models are fastest with", ge=1, le=256)
    memory: Bytes | Literal["auto"] = setting(
        "auto",
        "for models and batches computed together; replies that take more lie in files; auto: 1 GiB or one model, what a GPU has free",
        gt=0,
    )
    chunk: int | Literal["auto"] = setting(
        "auto", "models computed together; auto: 100, fewer where fewer work, or cache or memory hold fewer", ge=1
    )

    def alone(self) -> "LocalEngine":
        """The same in this process."""
        raise NotImplementedError


@dataclass(frozen=True)
class LocalEngine(MatrixEngine):
    """This machine."""

    name: ClassVar[str] = "local"

    device: str = setting("auto", "`cpu`, `cuda`, `cuda:1`, or several: `cuda:0,cuda:1`; all: every GPU; auto: cuda where there is one")
    processes: int | Literal["auto"] = setting("auto", "processes on a CPU; auto: one a core for convolutions, else 1", ge=1, le=256)

    def alone(self) -> "LocalEngine":
        return replace(self, processes=1)

    def start(self, task: Task, strategy: Strategy, seed: int) -> "Worker":
        strategy = replace(strategy, train=strategy.train.fitted(task, seed)).fitted(task)
        with placed("engine.device"):
            devices = listed(self.device)
        on_cpu = devices[0].type == "cpu"
        if self.precision == "tf32" and on_cpu:
            raise SettingError("engine.precision", "`tf32` needs a CUDA device; the engine's is the CPU")
        about: dict[str, Any] = {"device": ",".join(map(str, devices))} | set_arithmetic(devices[0], self.precision)
        threads = 1 if self.threads == "auto" else self.threads
        torch.set_num_threads(threads)
        keep_large_blocks()
        at_work = strategy.schedule.concurrency_limit(task.nodes)
        with placed("engine.device"), enough("the task"), current(devices[0]):
            task = task.move(devices[0])
            free = None if on_cpu or self.memory != "auto" else min(map(room_on, devices))
        batch, together = strategy.train.batch_size(task), -(-at_work // len(devices)) * strategy.copies
        memory = self.memory if self.memory != "auto" else max(MEMORY, affordable(task, batch)) if on_cpu else MEMORY
        room = memory if free is None else free
        if strategy.privacy is not None and not on_cpu:  # which gains from more rows, as a CPU does not
            together *= strategy.privacy.gradients(batch)
        chunk = rows_at_once(task, batch, together, room)  # also where chunk is set: it says whether memory has room for one
        if self.chunk != "auto":
            chunk = self.chunk if self.memory == "auto" else min(self.chunk, room // row_bytes(task, batch))
        loss = total if type(strategy).loss is Strategy.loss else strategy.loss  # then runs by other methods share what is traced
        with placed("engine.plan"), current(devices[0]):
            plan, reason = choose(task, loss, self.plan, chunk, threads, self.precision)
        about |= {"plan": plan.name, "plan_reason": reason, "precision": self.precision, "threads": threads, "chunk": chunk}
        about |= {"processes": processes(self.processes, plan, task, at_work, len(devices)), "memory": memory}
        worker = Worker(task, strategy, plan, seed, about)
        for device in devices[1:]:
            with placed("engine.device"), enough("the task"), current(device):
                there = task.move(device)
            with placed("engine.plan"), current(device):
                worker.share(Worker(there, strategy, choose(there, loss, plan.name, chunk, threads, self.precision)[0], seed, about))
        return worker


class Worker:
    """Computes jobs: a pure function of their rows, whatever else is computed with them."""

    keeps: ClassVar[tuple[str, ...]] = ("steps_done",)
    spread: ClassVar[bool] = False  # over actors, which have what nodes remember

    def __init__(self, task: Task, strategy: Strategy, plan: Plan, seed: int, about: dict[str, Any]) -> None:
        self.task, self.strategy, self.plan, self.seed, self.about = task, strategy, plan, seed, about
        self.privacy = strategy.privacy  # with its noise, once that is known
        self.chunk: int = about["chunk"]
        self.memory: int = about["memory"]
        self.carry: Carry = carried
        self.pool = Pool(self._piece, about["processes"], title) if about["processes"] > 1 else None
        self.device = task.init.device
        self.hands, self.others = Hands(), list[Worker]()  # of other devices
        self.planned: tuple[Train, Ints] | None = None  # steps of all nodes' jobs under these settings
        self.steps_done, self.ends = 0, inf  # when the run's time is up, by the host's monotonic clock

    def compute(self, jobs: Jobs) -> Replies:
        """All jobs, in chunks of rows with falling numbers of steps. Raises RunError where a strategy's or model's code does."""
        where, sorted_already = self.cut(jobs.node, self.pool.processes if self.pool else 1 + len(self.others))
        pieces = (part(jobs, at, sorted_already) for at in where)  # each made when it is due, so that it is read where it was just written
        if len(where) == 1 and sorted_already:
            return self._piece(next(pieces))
        whole = Replies({}, {}, {})

        def keep(place: int, done: Replies) -> None:
            for rows, found in zip(whole, done, strict=True):
                put(rows, found, where[place], len(jobs.node), self.memory)

        if self.pool and len(where) > 1:
            self.pool.map(list(pieces), keep)
        elif self.others and len(where) > 1:
            for one in self.others:
                one.strategy, one.privacy, one.carry, one.ends = self.strategy, self.privacy, self.carry, self.ends
            self.hands.map([self._piece, *(one._piece for one in self.others)], list(pieces), keep)
        else:
            for place, piece in enumerate(pieces):
                keep(place, self._piece(piece))
        return whole

    def share(self, other: "Worker") -> None:
        """Another device computes pieces too, beside this one."""
        if not self.others:
            self.hands.add(self.device)
        self.hands.add(other.device)
        self.others.append(other)

    def cut(self, nodes: Ints, hands: int) -> tuple[Sequence[Tensor], bool]:
        """Places of the jobs of nodes [m] in pieces with falling numbers of steps, for so many hands; are they in order already?"""
        steps = self.steps()[nodes]
        self.steps_done += int(steps.sum())
        order = np.argsort(-steps, kind="stable")
        pieces = -(-len(order) // self._size(len(order), hands))
        falling = bool((order[1:] > order[:-1]).all())
        return torch.tensor_split(torch.from_numpy(order), pieces), falling  # of even sizes, for which there are shapes

    def steps(self) -> Ints:
        """int64 [nodes]: of each node's jobs, worked out once."""
        train = self.strategy.train
        if self.planned is None or self.planned[0] is not train:
            self.planned = train, train.plan(torch.from_numpy(self.task.sizes), train.batch_size(self.task))[0].numpy()
        return self.planned[1]

    @contextmanager
    def brief(self) -> Iterator[None]:
        """Meanwhile jobs of very many steps have a few, for a reply that is only looked at."""
        strategy, train = self.strategy, self.strategy.train
        node = np.array([self.task.sizes.argmin()])
        steps = int(train.plan(torch.from_numpy(self.task.sizes[node]), train.batch_size(self.task), node)[0])
        if steps > BRIEF and not strategy.forward_only:  # those have steps of their own
            self.strategy = replace(strategy, train=replace(train, epochs=None, steps=BRIEF))
        try:
            yield
        finally:
            self.strategy = strategy

    def close(self) -> None:
        """Ends what computes beside this process."""
        if self.pool:
            self.pool.close()
        self.hands.close()

    def _size(self, jobs: int, hands: int) -> int:
        """Rows a piece: a chunk; less where several share the work and rows have the same bits in other company."""
        alone = isinstance(self.plan, Looped) or (isinstance(self.plan, Stacked) and self.plan.exact)
        if hands == 1 or not alone:
            return self.chunk
        if isinstance(self.plan, Looped):  # small pieces even out who is done first
            return max(1, min(self.chunk, jobs // (8 * hands)))
        return max(1, min(self.chunk, -(-jobs // hands)))

    def _piece(self, jobs: Jobs) -> Replies:
        """A chunk of jobs with falling numbers of steps."""
        keys = fold_array(self.seed, "job", jobs.node, jobs.turn)
        node, key, shared = sent(np.stack([jobs.node, keys, fold_array(self.seed, "shared", jobs.round)]), self.device)
        received, heard = parted(jobs.received)
        memory, own = parted(owned(jobs.memory))
        buffers = {name: rows.clone() for name, rows in (heard | own).items()}
        make = Local if self.privacy is None else partial(self.privacy.local, self.strategy.gradients)
        local = make(self.plan, self.task, self.strategy.train, node, key, jobs.round, buffers.get(BUFFERS), shared, (jobs.node, keys))
        local.ends = self.ends
        memory, moments = beside(memory), kept(memory, self.task.init.dtype)
        local.moments = moments  # of these jobs alone, and written in place
        try:
            with torch.no_grad(), read_only(received):
                found = self.strategy.local_update(received_of(received), memory_of(memory), local)
                parts, memory = replied(found, memory, len(node))
                codec = self.strategy.uplink
                parts = parts if self.privacy is None else self.privacy.clipped(parts)
                link = codec.init(parts) if jobs.link is None else jobs.link
                parts, link = self.carry(codec, parts, link, key if codec.lossless else fold(key, "uplink"))
        except (FedsimError, Finished):
            raise
        except Exception as error:
            hint(error, local.live, len(node))
            raise RunError(f"{title(jobs)} raised {blame(error)}") from error
        stored = keeping(local.moments, self.strategy.train.eight) if moments else {}
        return Replies(parts | buffers, memory | (buffers if own else {}) | stored, link)
