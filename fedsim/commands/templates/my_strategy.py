"""MyStrategy: authors, year, title, link, and the algorithm or equation that it follows.

A strategy is a few pure functions on rows. Nothing is kept on self: what the server remembers is its state, what clients remember is their
memory. `fedsim list strategy` shows those that are there; strategies/fedprox.py is one of a few lines.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim import Inbox, Local, Rows, Strategy, setting
from fedsim.task.task import Task


@dataclass(frozen=True)
class MyStrategy(Strategy):
    """The server keeps a part of its last step; momentum = 0 is FedAvg."""

    # Each field is a setting: scenarios, the command line and checks follow from it. `ge, gt, le, lt` are its limits.
    momentum: float = setting(0.5, "part of the last step that the next one keeps (beta)", ge=0, lt=1)

    def start(self, x: Tensor, task: Task) -> Rows:
        """The server's state before the first round: x [1, d] is the first model."""
        return {"model": x, "step": torch.zeros_like(x)}

    def local_update(self, received: Rows, memory: Rows, local: Local) -> tuple[Rows, Rows]:
        """The work of k clients at once: received["model"] is [k, d], a row a client. What is returned first travels to the server."""
        start = received["model"]
        return {"update": local.descend(start) - start}, memory

    def merge(self, state: Rows, inbox: Inbox) -> Rows:
        """The server takes in what has come: `inbox.mean` is [1, d], by samples."""
        step = self.momentum * state["step"] + inbox.mean("update")
        return state | {"model": state["model"] + step, "step": step}
