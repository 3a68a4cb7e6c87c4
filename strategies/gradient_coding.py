"""Gradient coding: Tandon et al. 2017, https://arxiv.org/abs/1612.03301, and Krishnan, Ebrahimi, Khisti 2023 (ICLR), "Sequential Gradient
Coding For Straggler Mitigation": exact gradients of whole batches without the slow workers, from data that several workers hold."""

# n: workers, q: coded sums that a worker has of a job, M: models, T: rounds that a gradient may come late, d: parameters

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from fedsim import Inbox, Local, Rows, Schedule, Strategy, setting
from fedsim.base.clock import Ints
from fedsim.base.devices import sent
from fedsim.base.errors import SettingError, TooFew
from fedsim.coding import Scheme
from fedsim.coding.batches import checked, exact, numbers, size, table
from fedsim.coding.patterns import absent
from fedsim.coding.rounds import Coded
from fedsim.coding.scheme import Uncoded
from fedsim.method.inbox import State
from fedsim.method.train import Train
from fedsim.settings.values import Constant, Curve
from fedsim.task.task import Task

ONE_STEP = Train(steps=1, batch="all")
COUNTERS = ("round", "jobs", "late", "waits")  # rounds begun, jobs decoded, rounds that they came late together, rounds that waited for all


@dataclass(frozen=True)
class GradientCoding(Strategy):
    """Job t is one step of model t mod M along the exact gradient of a batch that all know; model 0 is evaluated.

    Round r, in the papers' symbols and order; alpha is the step, B the scheme's coding matrix, g_j(t) chunk j's part of g(t):

        worker i:  l_i = sum_j B_ij g_j(t)         of the jobs t = r - T .. r for which the scheme has it work
        master:    waits until 1 + mu times the fastest worker's time, and on while those who came do not suffice
                   for each job t with a set I of results such that some a has a' B_I = 1':
                     g(t) = sum_{i in I} a_i l_i
                     w <- w - alpha g(t)           w: model t mod M

    T is 0 of `gc`, the burst of `sr_sgc`, window - 2 + burst of `m_sgc`, where a worker has several sums l of a job, uncoded ones of its
    own chunks too.
    Deviation: g_j are sums weighted so that g(t) is the batch's mean.

    The data, all nodes' together, are cut into as many blocks as a batch has samples, and a batch has one sample of each, so a worker
    holds the blocks of its chunks only. Workers keep no models: each round they hear those of the T + 1 jobs that they may work for.
    """

    name: ClassVar[str] = "gradient_coding"
    source: ClassVar[str] = "Tandon et al. 2017; Krishnan et al. 2023"
    one_hearer: ClassVar[bool] = True
    weighs: ClassVar[bool] = False
    mixed: ClassVar[tuple[str, ...]] = ("models",)

    scheme: Scheme = setting(Uncoded(), "who computes what: `none`, `gc` (cyclic), `fractional`, `sr_sgc` or `m_sgc`")
    models: int = setting(1, "M: models trained in turn, more than T, so that no gradient is stale", ge=1)
    patience: float = setting(1.0, "mu: a round lasts 1 + mu times as long as the fastest worker's work", ge=0)
    batch: int | Literal["all"] = setting(4096, "samples of a job", ge=1)
    lr: Curve = setting(Constant(0.1), "step along a gradient, by steps of the model if it changes")

    train: Train = ONE_STEP
    schedule: Schedule = field(default_factory=Coded)

    def __post_init__(self) -> None:
        if self.models <= self.scheme.delay:
            raise ValueError(f"gradients come up to {self.scheme.delay} rounds late, so `models` must be {self.scheme.delay + 1} or more")
        if self.train != ONE_STEP:
            raise SettingError("train", f"`{self.name}` does not train; it has `lr` and `batch` of its own, under `strategy`")
        if not isinstance(self.schedule, Coded):
            raise ValueError(f"rounds follow the code; the schedule `{self.schedule.name}` does not (leave it out)")
        if not self.uplink.lossless or self.privacy is not None:
            raise ValueError("decoding multiplies what codecs or noise add to a message; `uplink` and `privacy` have no place here")

    def start(self, x: Tensor, task: Task) -> State:
        late, workers, found = self.scheme.delay + 1, task.nodes, checked(self.scheme, task, self.batch)
        delivered = torch.zeros(1, late, *found.samples.shape, dtype=torch.bool)
        wide = torch.promote_types(x.dtype, found.weight.dtype)
        return {
            "models": x[:, None].repeat(1, self.models, 1),
            "results": torch.zeros(*delivered.shape, x.shape[1], dtype=wide, device=x.device),  # of the job at job mod (T + 1)
            "delivered": delivered,
            "done": torch.zeros(1, late, dtype=torch.bool),
            "slow": torch.zeros(1, self.scheme.horizon - 1, workers, dtype=torch.bool),  # in the last rounds
        } | {name: torch.zeros(1, dtype=torch.int64) for name in COUNTERS}

    def conforms(self, state: Rows, came: Ints) -> bool:
        """May the round end with those who came?"""
        return self.scheme.conforms(np.concatenate([state["slow"][0].numpy(), absent(state["slow"].shape[2], came)]))

    def _assigned(self, state: Rows) -> tuple[Tensor, Tensor]:
        """Ages and sums [n, slots] of this round."""
        job = int(state["round"]) - np.arange(self.scheme.delay + 1)
        delivered = state["delivered"][0, job % len(job)].numpy() | (job < 0)[:, None, None]
        age, sums = self.scheme.assign(delivered)
        return torch.from_numpy(age.copy()), torch.from_numpy(np.where(job[age] < 0, -1, sums))

    def effort(self, state: Rows, task: Task) -> tuple[Ints, Ints]:
        count, sums = table(self.scheme, task.nodes, size(task, self.batch)).samples, self._assigned(state)[1].numpy()
        samples = np.where(sums < 0, 0, count[np.arange(task.nodes)[:, None], sums]).sum(1)
        return np.ones(task.nodes, dtype=np.int64), samples

    def broadcast(self, state: Rows) -> Rows:
        jobs = int(state["round"]) - torch.arange(self.scheme.delay + 1)
        return {"models": state["models"][:, sent(jobs % self.models, state["models"].device)]}

    def instruct(self, state: Rows, nodes: Tensor) -> Rows:
        age, sums = (sent(one, nodes.device)[nodes] for one in self._assigned(state))
        return {"age": age, "sum": sums, "job": int(state["round"]) - age}

    def local_update(self, received: Rows, memory: Rows, local: Local) -> tuple[Rows, Rows]:
        found, sums = table(self.scheme, local.task.nodes, size(local.task, self.batch)), received["sum"]
        places, weight, results = sent(found.places, sums.device), sent(found.weight, sums.device), []
        row = torch.arange(len(sums), device=sums.device)
        for slot in range(sums.shape[1]):
            at = local.nodes, sums[:, slot].clamp(min=0)
            some = weight[at] * (sums[:, slot, None] >= 0)
            samples = numbers(local.task, size(local.task, self.batch), received["job"][:, slot, None], places[at])
            results.append(exact(local, samples, some, received["models"][row, received["age"][:, slot]], slot))
        return {"results": torch.stack(results, 1)}, memory

    def merge(self, state: Rows, inbox: Inbox) -> Rows:
        r, T = int(state["round"]), self.scheme.delay
        sender, device = inbox.sender.cpu(), inbox.sender.device
        age, sums = (one[sender] for one in self._assigned(state))
        message, slot = torch.nonzero(sums >= 0, as_tuple=True)
        at = (r - age[message, slot]) % (T + 1), sender[message], sums[message, slot]
        state["delivered"][0][at] = True
        which, where = (tuple(sent(one, device) for one in places) for places in ((message, slot), at))
        state["results"][0][where] = inbox["results"][which]
        for t in range(max(r - T, 0), r + 1):
            if not state["done"][0, t % (T + 1)]:
                self._decode(state, t, r - t)
        state["slow"] = torch.cat([state["slow"][0], torch.from_numpy(absent(state["slow"].shape[2], sender.numpy()))])[None, 1:]
        state["round"] += 1
        last = (r + 1) % (T + 1)  # the table of job r - T is that of the next job
        state["delivered"][0, last], state["done"][0, last] = False, False
        return state

    def _decode(self, state: Rows, t: int, age: int) -> None:
        """w <- w - alpha g(t), if g(t) can be decoded."""
        row = t % (self.scheme.delay + 1)
        a = self.scheme.decode(state["delivered"][0, row].numpy())
        if a is None:
            if age == self.scheme.delay:  # not from what conforms
                raise TooFew(f"the gradient of job {t + 1} can't be decoded from what came")
            return
        l = state["results"][0, row]  # noqa: E741
        g = sent(torch.from_numpy(a).to(l.dtype), l.device).flatten() @ l.flatten(0, 1)
        alpha = float(self.lr.at(np.array([t // self.models]))[0])
        state["models"][0, t % self.models] -= (alpha * g).to(state["models"])
        state["done"][0, row] = True
        state["jobs"] += 1
        state["late"] += age

    def model(self, state: Rows) -> Tensor:
        return state["models"][:, 0]

    def measure(self, state: Rows, task: Task) -> dict[str, float]:
        jobs, waits = int(state["jobs"]), int(state["waits"])
        return {"jobs": jobs, "wait_outs": waits, "rounds_late": int(state["late"]) / max(jobs, 1)}
