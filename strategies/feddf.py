"""FedDF: Lin, Kong, Stich, Jaggi 2020, "Ensemble Distillation for Robust Model Fusion in Federated Learning",
https://arxiv.org/abs/2006.07242, Algorithms 1 and 3: the server averages the models of each architecture, and lets each average learn what
the clients' models together make of public samples."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedsim import Inbox, Rows, setting
from fedsim.base.devices import sent
from fedsim.base.errors import SettingError
from fedsim.base.keys import fold
from fedsim.method.distil import accuracy, check, ensemble, learnt
from fedsim.task.task import Task
from strategies.fedavg import FedAvg


@dataclass(frozen=True)
class FedDF(FedAvg):
    """FedAvg within each architecture, then `steps` of Adam on the divergence from softmax(mean outputs of the clients' models).

    A client's model is the server's of now plus its update. steps = 0 is FedAvg within each architecture. `test/accuracy` is the mean over
    clients of their architecture's, `architectures/NAME/accuracy` that of each.
    """

    name: ClassVar[str] = "feddf"
    source: ClassVar[str] = "Lin et al. 2020"
    one_hearer: ClassVar[bool] = True
    architectures: ClassVar[bool] = True

    steps: int = setting(100, "of distillation after each merge, and for each architecture", ge=0, le=10**6)
    batch: int = setting(128, "public samples a step", ge=1)
    lr: float = setting(1e-3, "of Adam, along a cosine down to 0", gt=0)

    def start(self, x: Tensor, task: Task) -> Rows:
        if self.steps:
            check(self.name, task)
            if task.buffers.size:
                raise SettingError("task.model", f"has running statistics, and `{self.name}` judges clients' models without theirs")
        return {"model": x}

    def merge(self, state: Rows, inbox: Inbox) -> Rows:
        fused = super().merge(state, inbox)
        if not self.steps:
            return fused
        task = inbox.task
        assert task is not None
        home, model, updates = task.home[inbox.senders], state["model"], inbox["update"]
        said = list[Tensor]()
        for kind in np.unique(home).tolist():
            one, mine = task.stacks[kind], sent(np.flatnonzero(home == kind), updates.device)
            said.append(ensemble(one, (model[kind] + updates[mine])[:, : one.layout.size]))
        shares = (torch.stack(said).sum(0) / len(home)).softmax(1)
        model, key = fused["model"].clone(), fold(inbox.shared[0], "feddf", inbox.round)
        for kind, one in enumerate(task.stacks):
            own = model[kind, : one.layout.size]
            own.copy_(learnt(one, own, shares, self.steps, self.batch, self.lr, key))
        return fused | {"model": model}

    def personal(self, received: Rows, memory: Rows, task: Task) -> Tensor | None:
        return received["model"] if task.architectures else None

    def measure(self, state: Rows, task: Task) -> dict[str, float]:
        rows = zip(task.architectures, task.stacks, state["model"], strict=False)
        return {f"architectures/{of.group}/accuracy": accuracy(one, x[: one.layout.size]) for of, one, x in rows}
