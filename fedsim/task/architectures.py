"""Models of different architectures in one task: which group of nodes has which, and rows of unequal lengths side by side."""

# n: nodes, d: parameters of an architecture, w: those of the largest, h: architectures

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from fedsim.base.errors import SettingError
from fedsim.base.rows import Layout, Rows
from fedsim.models import Model
from fedsim.models.pure import statistics
from fedsim.settings.values import Population

MODEL = "task.model"


@dataclass(frozen=True)
class Architecture:
    """A model of several: its template, whose trainable parameters in the order of `layout` form a row, and the first such row [d].

    `key` says where a scenario has it, `known` what was worked out once for all runs over the task.
    """

    key: str
    model: nn.Module
    layout: Layout
    init: Tensor
    known: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def group(self) -> str:
        """The first group that has it; `model` where it is that of all groups without one of their own."""
        return self.key.rpartition(".")[2]

    @classmethod
    def of(cls, key: str, model: nn.Module) -> "Architecture":
        """With the parameters that it has now as the first ones."""
        layout = Layout.of(model)
        return cls(key, model, layout, layout.join({name: p.detach() for name, p in model.named_parameters()}))


def on(device: torch.device | str, model: nn.Module) -> nn.Module:
    """Another module of the same numbers on a device; where they are there already, the very same ones: nobody writes to them."""
    same = {id(one): one for one in model.parameters() if one.device == torch.device(device)}
    return copy.deepcopy(model, same).to(device)


Kind = tuple[str, Model, list[range]]  # the key of an architecture, its settings, and the ids of its nodes


def kinds_of(model: Model, models: Mapping[str, Model], people: Population) -> list[Kind]:
    """The different ones that nodes have, in the order of their first nodes: a group's own of `models`, else `model`.

    Raises SettingError for a group that is not there.
    """
    for group in models:
        if group not in people.groups:
            there = f"there are {', '.join(people.groups)}" if people.groups else "`groups` is not set"
            raise SettingError(f"task.models.{group}", f"no group `{group}`; {there}")
    found = list[Kind]()
    for group, ids in (people.groups if models else {"": range(people.nodes)}).items():
        own = models.get(group, model)
        same = next((kind for kind in found if kind[1] == own), None)
        if same is None:
            found.append(same := (f"task.models.{group}" if group in models else MODEL, own, []))
        same[2].append(ids)
    return found


@contextmanager
def blamed(key: str) -> Iterator[None]:
    """What is said of `task.model` in the block is said of this key."""
    try:
        yield
    except SettingError as error:
        if not error.key.startswith(MODEL):
            raise
        raise SettingError(key + error.key.removeprefix(MODEL), error.message) from error


def together(
    first: nn.Module, kinds: Sequence[Kind], nodes: int, x: Tensor, make: Callable[[Model], nn.Module]
) -> tuple[tuple[Architecture, ...], Tensor]:
    """The architectures of a task, `first` among them and `make` for the others, and which of them each node has, int64 [n].

    Nothing where there is one. Raises SettingError where outputs on some samples x differ in shape, or one has running statistics.
    """
    which = torch.zeros(nodes, dtype=torch.int64)
    if len(kinds) == 1:
        return (), which[:0]
    found = list[Architecture]()
    for number, (key, settings, blocks) in enumerate(kinds):
        with blamed(key):
            found.append(Architecture.of(key, make(settings) if number else first))
        _alike(found[0], found[-1], x)
        for ids in blocks:
            which[ids.start : ids.stop] = number
    return tuple(found), which


@torch.no_grad()
def _alike(first: Architecture, other: Architecture, x: Tensor) -> None:
    if statistics(other.model)[0].size:
        what = "has running statistics, which nodes with different models can't share: GroupNorm has none"
        raise SettingError(other.key, what)
    due, given = (list(one.model(x).shape[1:]) for one in (first, other))
    if due != given:
        what = f"gives outputs of shape {given}, and that of `{first.key}` {due}: nodes with different models meet in their outputs"
        raise SettingError(other.key, what)


def cut(rows: Rows, width: int, size: int) -> Rows:
    """Parts [m, ...] as the nodes of an architecture of `size` parameters have them: of rows of models [m, width] their first numbers."""
    if size == width:
        return rows
    return {name: _first(part, size) if _is_model(part, width) else part for name, part in rows.items()}


def filled(rows: Rows, size: int, width: int) -> Rows:
    """The other way: rows of models [m, size] as long as those of the largest, [m, width], with zeros."""
    if size == width:
        return rows
    return {name: pad(part, (0, width - size)) if _is_model(part, size) else part for name, part in rows.items()}


def _is_model(part: Tensor, size: int) -> bool:
    return part.dim() == 2 and part.shape[1] == size and part.is_floating_point()


def _first(part: Tensor, size: int) -> Tensor:
    short = part[:, :size]
    return short if part.stride(0) == 0 else short.contiguous()
