"""Shifts: how a node's samples differ from those of the data set, and when. Pure functions of node, sample number and round.

They are applied where samples are used (training batches, and a client's own test samples), so that nodes may share samples and
nothing is copied. The test set of all stays as it is, and so do the counts of labels, which tell how the data were split.
"""

# m: rows (each of one node), B: samples a row, n: nodes

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedsim.base.errors import SettingError
from fedsim.base.keys import fold, uniform
from fedsim.settings.choice import Choice
from fedsim.settings.part import Part, setting
from fedsim.settings.values import Floats, Population


@dataclass(frozen=True)
class Gathered:
    """Samples where they are used; row i is of one node in one round (the first is 0). `number` tells samples apart."""

    inputs: Tensor  # [m, B, ...]
    targets: Tensor  # [m, B] or [m, B, outputs]
    number: Tensor  # int64 [m, B]
    node: Tensor  # int64 [m]
    round: Tensor  # int64 [m]

    def rows(self, at: Tensor) -> "Gathered":
        return Gathered(self.inputs[at], self.targets[at], self.number[at], self.node[at], self.round[at])

    def keys(self, key: Tensor) -> Tensor:
        """int64 [m, B]: one for each node and sample, the same whenever they meet."""
        return fold(key, self.node[:, None], self.number)

    def lot(self, key: Tensor) -> Tensor:
        """float32 [m, B]: uniform in [0, 1), one for each node and sample."""
        return uniform(self.keys(key), 1)[..., 0]


@dataclass(frozen=True)
class Facts:
    """What a shift must know of the task: shape of a sample, whether it holds numbers, and how many classes (0: no class a sample)."""

    shape: tuple[int, ...]
    numbers: bool
    classes: int


class Shift(Part):
    """`change` gives the samples as they are on the nodes that `nodes` chooses."""

    slot: ClassVar[str] = "shift"
    modules: ClassVar[tuple[str, ...]] = ("fedsim.data.shift_kinds",)
    moves: ClassVar[bool] = False  # do pixels change their places, so that a mask would no longer fit?
    of_classes: ClassVar[bool] = False  # changes targets, which must be one class a sample
    per_node: ClassVar[tuple[str, ...]] = ()  # settings that differ over nodes
    nodes: Choice

    def change(self, of: Gathered, values: Tensor, facts: Facts, key: Tensor) -> Gathered:
        """The samples, changed; values float32 [m, settings per node], in the order of `per_node`. Never in place."""
        raise NotImplementedError

    def relabels(self) -> bool:
        """Does it change targets alone, without a look at the inputs? Then many steps' samples are given at once, and in their place."""
        return False

    def check(self, facts: Facts, values: Floats) -> None:
        """Raises SettingError, with the shift's own key, where it can't be; values float64 [n, settings per node]."""
        if self.of_classes and not facts.classes:
            raise SettingError("name", f"{self.name} changes classes, and the targets are not one class a sample")
        if not self.of_classes and not facts.numbers:
            raise SettingError("name", f"{self.name} changes numbers, and the samples are tokens")

    def chosen(self, people: Population, key: Tensor) -> Tensor:
        """bool [n]: on which nodes. Raises SettingError where the choice does not fit them."""
        try:
            return torch.from_numpy(self.nodes.mask(people, fold(key, "nodes")))
        except ValueError as error:
            raise SettingError("nodes", str(error)) from error

    def values(self, people: Population, key: Tensor) -> Floats:
        """float64 [n, settings per node]. Raises SettingError where one does not fit the nodes."""
        found = np.empty((people.nodes, len(self.per_node)))
        for place, name in enumerate(self.per_node):
            try:
                found[:, place] = getattr(self, name).floats(people, fold(key, name))
            except ValueError as error:
                raise SettingError(name, str(error)) from error
        return found


@dataclass(frozen=True)
class Bound:
    """A shift on the nodes of a task, all tensors on its device."""

    shift: Shift
    facts: Facts
    key: Tensor
    nodes: Tensor  # bool [n]
    values: Tensor  # float32 [n, settings per node]

    def to(self, device: torch.device | str) -> "Bound":
        return replace(self, key=self.key.to(device), nodes=self.nodes.to(device), values=self.values.to(device))

    def __call__(self, of: Gathered) -> Gathered:
        mine = self.nodes[of.node]
        if mine.device.type != "cpu":  # a GPU changes all rows, so that nobody waits to hear which are meant
            new = self.shift.change(of, self.values[of.node], self.facts, self.key)
            return replace(of, inputs=_chosen(mine, new.inputs, of.inputs), targets=_chosen(mine, new.targets, of.targets))
        at = mine.nonzero()[:, 0]
        if not len(at):
            return of
        rows = of.rows(at)
        new = self.shift.change(rows, self.values[rows.node], self.facts, self.key)
        inputs = of.inputs if new.inputs is rows.inputs else of.inputs.index_copy(0, at, new.inputs)
        return replace(of, inputs=inputs, targets=of.targets.index_copy(0, at, new.targets))


def _chosen(which: Tensor, after: Tensor, before: Tensor) -> Tensor:
    """After where `which` says so, by as many leading axes as it has, else before."""
    return before if after is before else torch.where(which.view(*which.shape, *[1] * (after.dim() - which.dim())), after, before)


def bind(shifts: tuple[Shift, ...], facts: Facts, people: Population, key: Tensor) -> tuple[Bound, ...]:
    """The shifts of `task.shift`. Raises SettingError, with the key to blame, where one does not fit the task."""
    found = []
    for place, shift in enumerate(shifts):
        own = fold(key, place)
        try:
            chosen, values = shift.chosen(people, own), shift.values(people, own)
            shift.check(facts, values)
        except SettingError as error:
            raise SettingError(f"task.shift.{place}.{error.key}", error.message) from error
        found.append(Bound(shift, facts, own, chosen, torch.from_numpy(values).float()))
    return tuple(found)


def shifted(shifts: tuple[Bound, ...], of: Gathered) -> Gathered:
    """The samples as their nodes have them in that round: the shifts in their order."""
    for one in shifts:
        of = one(of)
    return of


@dataclass(frozen=True)
class Drift(Shift):
    """Another shift that comes with time: at once or sample by sample, for good, for some rounds, or again and again.

    A sample turns in the round that its lot says. Rounds count from 0, as everywhere; without a server or with a buffer they are the
    round in which a node begins its work.
    """

    source: ClassVar[str] = "kinds of drift: Gama et al. 2014, A survey on concept drift adaptation"

    inner: Shift = setting(help="the shift that comes; it chooses the nodes")
    start: int = setting(0, "first round with it", ge=0)
    over: int = setting(0, "rounds from `start` over which the share of changed samples grows from none to all; 0: all at once", ge=0)
    lasts: int | None = setting(None, "rounds from `start` after which it is gone; by default it stays", ge=1)
    every: int | None = setting(None, "begins anew each so many rounds", ge=1)

    def __post_init__(self) -> None:
        if self.every is not None and (self.lasts is None or self.lasts >= self.every):
            raise ValueError("`every` needs a `lasts` that is less: how many of these rounds it lasts")

    def share(self, round: Tensor) -> Tensor:
        """float32, as `round` (int64): the share of samples that is changed then."""
        age = round - self.start
        if self.every is not None:
            age = torch.where(age >= 0, age % self.every, age)
        there = (age >= 0) & (age < self.lasts) if self.lasts is not None else age >= 0
        grown = (age / self.over).clamp(max=1) if self.over else torch.ones_like(age, dtype=torch.float32)
        return torch.where(there, grown, torch.zeros_like(grown))

    def change(self, of: Gathered, values: Tensor, facts: Facts, key: Tensor) -> Gathered:
        share = self.share(of.round)[:, None]
        if share.device.type == "cpu" and not share.any():
            return of
        new = self.inner.change(of, values, facts, fold(key, "inner"))
        turned = of.lot(fold(key, "turn")) < share

        return replace(of, inputs=_chosen(turned, new.inputs, of.inputs), targets=_chosen(turned, new.targets, of.targets))

    def check(self, facts: Facts, values: Floats) -> None:
        with _inside():
            self.inner.check(facts, values)

    def relabels(self) -> bool:
        return self.inner.relabels()

    def chosen(self, people: Population, key: Tensor) -> Tensor:
        with _inside():
            return self.inner.chosen(people, fold(key, "inner"))

    def values(self, people: Population, key: Tensor) -> Floats:
        with _inside():
            return self.inner.values(people, fold(key, "inner"))


class _inside:
    """Errors of the inner shift are about its own key."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, SettingError):
            raise SettingError(f"inner.{error.key}", error.message) from error
