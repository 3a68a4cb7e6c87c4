"""Who lies, and how: nodes whose messages hold something else when they reach the server, or whose training samples are false."""

# m: messages of a merge (one row each), f: those of attackers, d: numbers of a part, n: nodes

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.base.clock import Ints
from fedsim.base.devices import sent
from fedsim.base.errors import SettingError
from fedsim.base.keys import fold, normal
from fedsim.base.rows import Rows
from fedsim.base.store import room
from fedsim.data.shift import Bound, Facts, Shift
from fedsim.data.shift_kinds import FlipLabels
from fedsim.settings.choice import Choice
from fedsim.settings.part import Part, setting
from fedsim.settings.values import Population
from fedsim.task.task import Task

SLAB = 1 << 22  # numbers looked at, or drawn, at once


@dataclass(frozen=True, kw_only=True)
class Attackers(Part):
    """Nodes that lie. All parts of a message are changed alike, after its codec; running statistics are as they were."""

    slot: ClassVar[str] = "attackers"
    abstract: ClassVar[bool] = True
    forges: ClassVar[bool] = True  # changes messages, not only samples
    overhears: ClassVar[bool] = False  # makes its messages of those of the others

    nodes: Choice = setting(help="which nodes: `20 %` by lot, `0..9`, `odd`, a group")

    def forge(self, rows: Tensor, false: Tensor, key: Tensor) -> Tensor:
        """[f, d] or [1, d]: what attackers send instead, of what all would send: rows [m, d], those where `false` [m]; key int64 [f]."""
        raise NotImplementedError

    def poison(self) -> Shift | None:
        """What they make of their training samples."""
        return None


@dataclass(frozen=True, kw_only=True)
class LabelFlip(Attackers):
    """Class y is called C - 1 - y in the attackers' training samples; the work is honest."""

    forges: ClassVar[bool] = False

    def poison(self) -> Shift | None:
        return FlipLabels(self.nodes)


@dataclass(frozen=True, kw_only=True)
class SignFlip(Attackers):
    """Their own message times -factor."""

    factor: float = setting(1.0, "how much longer it becomes (s)", gt=0)

    def forge(self, rows: Tensor, false: Tensor, key: Tensor) -> Tensor:
        return rows[false] * -self.factor


@dataclass(frozen=True, kw_only=True)
class Gaussian(Attackers):
    """Normal noise instead of their message, drawn for each message."""

    source: ClassVar[str] = "Blanchard et al. 2017, Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent"

    sigma: float = setting(1.0, "its deviation in each coordinate", gt=0)

    def forge(self, rows: Tensor, false: Tensor, key: Tensor) -> Tensor:
        width = rows.shape[1]
        drawn = [normal(some, width).to(rows.dtype) for some in torch.split(key, max(1, SLAB // width))]
        return torch.cat(drawn).mul_(self.sigma)


@dataclass(frozen=True, kw_only=True)
class Alie(Attackers):
    """A little is enough: all send the honest messages' mean - z x deviation, by coordinate, of the same merge.

    z is what the standard normal distribution keeps below with the chance (m - f - s) / (m - f), where s = floor(m / 2 + 1) - f
    honest messages (at least 1) are to lie further out; no less than 0. In a merge without an honest message, of what they would have sent.
    """

    source: ClassVar[str] = "Baruch et al. 2019, A Little Is Enough: Circumventing Defenses For Distributed Learning, arXiv 1902.06156"

    overhears: ClassVar[bool] = True

    z: float | None = setting(None, "deviations; by default from m and f", ge=0)

    def forge(self, rows: Tensor, false: Tensor, key: Tensor) -> Tensor:
        z = self.deviations(len(rows), int(false.sum())) if self.z is None else self.z
        return of_honest(rows, false, lambda part: part.mean(0) - z * part.std(0, correction=0))

    @staticmethod
    def deviations(m: int, f: int) -> float:
        """z of f attackers among m messages; 0 where there are not so many honest ones."""
        supporters = max(1, m // 2 + 1 - f)
        if supporters >= m - f:
            return 0.0
        below = torch.tensor((m - f - supporters) / (m - f), dtype=torch.float64)
        return max(0.0, float(torch.special.ndtri(below)))


@dataclass(frozen=True, kw_only=True)
class InnerProduct(Attackers):
    """All send -epsilon times the honest messages' mean of the same merge; in a merge without one, of what they would have sent."""

    source: ClassVar[str] = (
        "Xie et al. 2019, Fall of Empires: Breaking Byzantine-tolerant SGD by Inner Product Manipulation, arXiv 1903.03936"
    )

    overhears: ClassVar[bool] = True

    epsilon: float = setting(0.5, "how long, beside the honest mean", gt=0)

    def forge(self, rows: Tensor, false: Tensor, key: Tensor) -> Tensor:
        return of_honest(rows, false, lambda part: part.mean(0) * -self.epsilon)


def of_honest(rows: Tensor, false: Tensor, of: Callable[[Tensor], Tensor]) -> Tensor:
    """[1, d]: what `of` makes of the columns of the honest rows (of all rows [m, d] where none is), some columns at a time."""
    honest = torch.ones_like(false) if false.all() else ~false
    return torch.cat([of(part[honest]) for part in torch.split(rows, max(1, SLAB // len(rows)), 1)])[None]


@dataclass(frozen=True)
class Liars:
    """Attackers over a population: `false` bool [n] says who they are."""

    attackers: Attackers
    false: NDArray[np.bool_]
    key: Tensor

    def heard(self, parts: Rows, node: Ints, job: Ints) -> Rows:
        """Parts of the messages [m] of a merge as they reach the hearer; nothing is written in place."""
        false = torch.from_numpy(self.false[node])
        if not self.attackers.forges or not false.any():
            return parts
        at = false.nonzero()[:, 0]
        key = fold(self.key, torch.from_numpy(node)[at], torch.from_numpy(job)[at])
        return {name: self._forged(name, rows, false, at, key) for name, rows in parts.items()}

    def _forged(self, name: str, rows: Tensor, false: Tensor, at: Tensor, key: Tensor) -> Tensor:
        if not rows.is_floating_point():
            return rows
        lies = self.attackers.forge(rows.flatten(1), false, sent(fold(key, name), rows.device))
        out = room(rows, len(rows)).copy_(rows)
        return out.index_copy_(0, sent(at, rows.device), lies.view(-1, *rows.shape[1:]).expand(len(at), *rows.shape[1:]))

    def poisoned(self, task: Task) -> Task:
        """The task with what attackers make of the samples they train on. Raises SettingError where those can't be changed so."""
        if (shift := self.attackers.poison()) is None:
            return task
        numbers = task.inputs.is_floating_point() or task.inputs.dtype == torch.uint8
        facts = Facts(tuple(task.inputs.shape[1:]), numbers, task.classes if task.labelled else 0)
        try:
            values = shift.values(Population(task.nodes, task.groups), self.key)
            shift.check(facts, values)
        except SettingError as error:
            raise SettingError("world.attackers", error.message) from error
        return replace(task, poison=(Bound(shift, facts, self.key, torch.from_numpy(self.false), torch.from_numpy(values).float()),))

    @property
    def about(self) -> dict[str, Any]:
        """For run.json: how they lie, how many there are, and who (the first 1,000)."""
        nodes = np.flatnonzero(self.false)
        return {"name": self.attackers.name, "count": len(nodes), "nodes": nodes[:1000].tolist()}

    def __str__(self) -> str:
        nodes, shown = np.flatnonzero(self.false), 10
        more = f" and {len(nodes) - shown:,} more" if len(nodes) > shown else ""
        return f"{self.attackers.name} on {len(nodes):,} of {len(self.false):,} nodes: {', '.join(map(str, nodes[:shown]))}{more}"
