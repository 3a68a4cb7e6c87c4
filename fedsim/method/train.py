"""How a node trains: the settings of `train`."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

from fedsim.base.clock import Ints
from fedsim.base.errors import SettingError
from fedsim.base.keys import fold
from fedsim.base.rows import Layout, Rows
from fedsim.method.clipping import Clip, Norm
from fedsim.method.optimizers import Optimizer, Sgd
from fedsim.settings.part import setting
from fedsim.settings.values import Constant, Curve, Floats, PerNode, Population
from fedsim.task.task import Task

EACH = ("epochs", "steps", "lr")  # what may differ by node
MOST = 1e9  # epochs or steps


@dataclass(frozen=True)
class Train:
    """How a node trains: over its own samples, reshuffled each epoch, by SGD or another optimizer."""

    exclusive: ClassVar[tuple[str, ...]] = ("epochs", "steps")
    follow: ClassVar[dict[str, tuple[str, ...]]] = {"optimizer": ("lr", "weight_decay")}  # whose defaults are those of the other

    epochs: float | PerNode[float] | None = setting(
        None, "passes over the node's samples, 1 if `steps` is not set either; 0.5 is half a pass; may differ by node", gt=0, le=MOST
    )
    steps: int | PerNode[int] | None = setting(None, "batches instead of epochs; may differ by node", ge=1, le=int(MOST))
    batch: int | Literal["all"] = setting(32, "samples a step", ge=1)
    lr: Curve | PerNode[float] = setting(
        None, "learning rate, by round or by node if it changes; by default 0.05, of adam and adamw 0.001, of adagrad 0.01", ge=0
    )
    optimizer: Optimizer = setting(Sgd(), "what a step makes of its slope: of gradient, pulls and drifts of the method, in one sum")
    state: Literal["reset", "keep", "keep_8bit"] = setting(
        "reset", "moments of the optimizer: from zero in each job, or remembered by the node, in 32 bits or in 8"
    )
    momentum: float = setting(0.0, "heavy-ball momentum of sgd, from zero in each job unless the state is kept", ge=0, lt=1)
    weight_decay: float = setting(
        None, "times the model, added to the gradient, or beside it under adamw; by default 0, of adamw 0.01", ge=0
    )
    clip: Clip | None = setting(None, "greatest length of a gradient, or a rule that follows earlier ones: adagc, spam")

    def __post_init__(self) -> None:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("`epochs` and `steps` exclude each other")
        for name in EACH:
            if isinstance(value := getattr(self, name), PerNode) and value.constant is not None:  # one number for all
                object.__setattr__(self, name, Constant(float(value.constant)) if name == "lr" else value.constant)
        if isinstance(self.clip, int | float):
            object.__setattr__(self, "clip", Norm(float(self.clip)))
        for name in self.follow["optimizer"]:
            if getattr(self, name) is None:
                default = getattr(self.optimizer, name)
                object.__setattr__(self, name, Constant(default) if name == "lr" else default)
        if self.momentum and not isinstance(self.optimizer, Sgd):
            raise SettingError("momentum", f"is sgd's; `{self.optimizer.name}` has moments of its own")
        if self.clip is not None:
            self.clip.check(self.optimizer, self.keeps)
        learns = self.clip is not None and self.clip.learns
        if self.keeps and isinstance(self.optimizer, Sgd) and not self.momentum and (self.eight or not learns):
            what = ", and what the clip knows is not stored in 8 bits; use `keep`" if learns else "; set `momentum`, or another `optimizer`"
            raise SettingError("state", f"plain sgd has nothing to keep{what}")

    @property
    def keeps(self) -> bool:
        """Do nodes remember moments from job to job?"""
        return self.state != "reset"

    @property
    def eight(self) -> bool:
        """In 8 bits?"""
        return self.state == "keep_8bit"

    @property
    def plain(self) -> bool:
        """Is each step x <- x - lr x gradient and nothing else?"""
        return isinstance(self.optimizer, Sgd) and not self.momentum and not self.weight_decay and self.clip is None

    def moments(self, x: Tensor, layout: Layout) -> Rows:
        """Of jobs before their first step, whose models are x [m, d]; [m, ...] each."""
        found = {"velocity": torch.zeros_like(x)} if self.momentum else self.optimizer.moments(x)
        return found if self.clip is None else found | self.clip.moments(x, layout)

    # What differs by node

    def fitted(self, task: Task, seed: int) -> Self:
        """For a task: what differs by node as one number a node. Raises SettingError where that does not fit or makes no sense."""
        people, found = Population(task.nodes, task.groups), dict[str, Any]()
        for name in EACH:
            if not isinstance(value := getattr(self, name), PerNode):
                continue
            try:
                each = value.floats(people, fold(seed, "train", name))
            except ValueError as error:
                raise SettingError(f"train.{name}", str(error)) from error
            each = np.round(each) if name == "steps" else each
            fine = np.isfinite(each) & (each >= 0) if name == "lr" else (each > 0) & (each <= MOST)
            if len(wrong := np.flatnonzero(~fine)):
                due = {"lr": "0 or more", "steps": "1 or more, up to 1e9,", "epochs": "above 0, up to 1e9,"}[name]
                raise SettingError(f"train.{name}", f"node {wrong[0]} gets {each[wrong[0]]:.4g}; {due} is due")
            found[name] = PerNode(tuple((each.astype(np.int64) if name == "steps" else each).tolist()))
        return replace(self, **found) if found else self

    def alike(self) -> Self:
        """The same with what differs by node left to its default."""
        differ: dict[str, Any] = {name: None for name in EACH if isinstance(getattr(self, name), PerNode)}
        return replace(self, **differ) if differ else self

    @cached_property
    def _tables(self) -> dict[str, Tensor]:
        """What differs by node, [nodes] each."""
        values = {name: one.value for name in EACH if isinstance(one := getattr(self, name), PerNode)}
        assert all(isinstance(one, tuple) for one in values.values()), "not `fitted` to a task"
        return {name: torch.tensor(one, dtype=torch.int64 if name == "steps" else torch.float64) for name, one in values.items()}

    def _of(self, name: str, nodes: Ints | Tensor | None, like: Tensor) -> Tensor:
        """What differs by node, of these nodes (None: of all), where `like` is."""
        each = self._tables[name].to(like.device)
        return each if nodes is None else each[torch.as_tensor(nodes, device=like.device)]

    def rates(self, nodes: Ints, rounds: Ints) -> float | Floats:
        """Learning rate of jobs of nodes [m] in rounds [m]: one for all, or float64 [m]."""
        if isinstance(self.lr, PerNode):
            return self._tables["lr"].numpy()[nodes]
        return self.lr.value if isinstance(self.lr, Constant) else self.lr.at(rounds)

    def batch_size(self, task: Task) -> int:
        """Samples a batch has room for, the same for all jobs of a run, so that results don't depend on how jobs are grouped."""
        return task.most if self.batch == "all" else min(self.batch, task.most)

    def plan(self, counts: Tensor, size: int, nodes: Ints | Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Steps a job and steps an epoch, int64 as `counts` (samples of these nodes, None: of all); `size` samples a batch."""
        per_epoch = (counts + size - 1) // size
        if isinstance(self.steps, PerNode):
            return self._of("steps", nodes, counts).clone(), per_epoch
        if self.steps is not None:
            return torch.full_like(counts, self.steps), per_epoch
        epochs = self._of("epochs", nodes, counts) if isinstance(self.epochs, PerNode) else self.epochs or 1.0
        steps = per_epoch.double() * epochs - 1e-9  # 0.3 x 50 is 15
        return steps.ceil().long().clamp(min=1), per_epoch

    def samples(self, counts: Tensor, size: int) -> Tensor:
        """Samples that a job of each node looks at, with repetition; int64 as `counts`."""
        steps, per_epoch = self.plan(counts, size)
        return steps // per_epoch * counts + torch.minimum(steps % per_epoch * size, counts)
