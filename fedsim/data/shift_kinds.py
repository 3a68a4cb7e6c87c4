"""The kinds of shift: labels swapped, rotated or permuted; images turned, numbers scaled, noise."""

# m: rows (each of one node), B: samples a row, n: nodes

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from fedsim.base.errors import SettingError
from fedsim.base.keys import below, fold, normal, permutation
from fedsim.data.shift import Facts, Gathered, Shift
from fedsim.settings.choice import EVERYONE, Choice
from fedsim.settings.part import setting
from fedsim.settings.values import Floats, PerNode, Share


def _class(value: int, key: str, facts: Facts) -> None:
    if value >= facts.classes:
        raise SettingError(key, f"class {value} of {facts.classes} (the first is 0)")


@dataclass(frozen=True)
class Relabelling(Shift):
    """Nodes call some samples by other classes."""

    abstract: ClassVar[bool] = True
    of_classes: ClassVar[bool] = True

    def relabels(self) -> bool:
        return True


@dataclass(frozen=True)
class SwapLabels(Relabelling):
    """Samples of two classes are labelled as the other one: each with chance `share`, by lot for its node and number.

    FedStale relabels int(share x count) samples of either class; here the number is drawn, so that nodes may share samples.
    """

    source: ClassVar[str] = "Rodio & Neglia 2024, FedStale, arXiv 2405.04171 (data heterogeneity)"
    pair: tuple[int, int] = setting(help="the two classes", ge=0)
    share: Share = setting(1.0, "share of their samples that is relabelled", ge=0, le=1)
    nodes: Choice = setting(EVERYONE, "on which nodes")

    def check(self, facts: Facts, values: Floats) -> None:
        super().check(facts, values)
        for value in self.pair:
            _class(value, "pair", facts)
        if self.pair[0] == self.pair[1]:
            raise SettingError("pair", f"class {self.pair[0]} with itself")

    def change(self, of: Gathered, values: Tensor, facts: Facts, key: Tensor) -> Gathered:
        (first, second), y = self.pair, of.targets
        other = torch.where(y == first, second, torch.where(y == second, first, y))
        return replace(of, targets=other if self.share == 1 else torch.where(of.lot(key) < self.share, other, y))


@dataclass(frozen=True)
class FlipLabels(Relabelling):
    """Class c of C is called C - 1 - c."""

    nodes: Choice = setting(EVERYONE, "on which nodes")

    def change(self, of: Gathered, values: Tensor, facts: Facts, key: Tensor) -> Gathered:
        return replace(of, targets=facts.classes - 1 - of.targets)


@dataclass(frozen=True)
class RotateLabels(Relabelling):
    """Class c is called c + by (mod classes)."""

    by: int = setting(1, "places", ge=1)
    nodes: Choice = setting(EVERYONE, "on which nodes")

    def change(self, of: Gathered, values: Tensor, facts: Facts, key: Tensor) -> Gathered:
        return replace(of, targets=(of.targets + self.by) % facts.classes)


@dataclass(frozen=True)
class PermuteLabels(Relabelling):
    """Classes are renamed by a permutation drawn for each node, or for each of some kinds of nodes."""

    source: ClassVar[str] = "Sattler et al. 2020, Clustered Federated Learning, arXiv 1910.01991 (label permutations by cluster)"
    kinds: int | None = setting(None, "so many permutations, each node has one of them by lot; by default each its own", ge=1)
    nodes: Choice = setting(EVERYONE, "on which nodes")

    def change(self, of: Gathered, values: Tensor, facts: Facts, key: Tensor) -> Gathered:
        kind = of.node if self.kinds is None else below(fold(key, "kind", of.node), 1, self.kinds)[:, 0]
        return replace(of, targets=permutation(fold(key, "order", kind), facts.classes).gather(1, of.targets))


@dataclass(frozen=True)
class Rotate(Shift):
    """Images are turned to the left by a multiple of 90 degrees."""

    moves: ClassVar[bool] = True
    per_node: ClassVar[tuple[str, ...]] = ("degrees",)

    degrees: PerNode[int] = setting(PerNode(90), "0, 90, 180 or 270")
    nodes: Choice = setting(EVERYONE, "on which nodes")

    def check(self, facts: Facts, values: Floats) -> None:
        super().check(facts, values)
        if len(facts.shape) not in (2, 3) or facts.shape[-1] != facts.shape[-2]:
            raise SettingError("name", f"square images are needed, not samples of shape {list(facts.shape)}")
        if (bad := values[values % 90 != 0]).size:
            raise SettingError("degrees", f"{bad[0]:g} is no multiple of 90")

    def change(self, of: Gathered, values: Tensor, facts: Facts, key: Tensor) -> Gathered:
        turns, out = (values[:, 0] / 90).long() % 4, of.inputs
        for quarter in (1, 2, 3):  # of all, so that nobody asks a GPU which they are
            mine = (turns == quarter).view(-1, *[1] * (out.dim() - 1))
            out = torch.where(mine, torch.rot90(of.inputs, quarter, (-2, -1)), out)
        return replace(of, inputs=out)


@dataclass(frozen=True)
class Scale(Shift):
    """Numbers x become factor x x + offset, both by node: another sensor, scanner or exposure."""

    per_node: ClassVar[tuple[str, ...]] = ("factor", "offset")

    factor: PerNode[float] = setting(PerNode(1.0), "times each number")
    offset: PerNode[float] = setting(PerNode(0.0), "added to each number")
    nodes: Choice = setting(EVERYONE, "on which nodes")

    def change(self, of: Gathered, values: Tensor, facts: Facts, key: Tensor) -> Gathered:
        factor, offset = values.to(of.inputs.dtype).T.reshape(2, -1, *[1] * (of.inputs.dim() - 1))
        return replace(of, inputs=of.inputs * factor + offset)


@dataclass(frozen=True)
class Noise(Shift):
    """Normal noise on each number, drawn once for each node and sample; `{name: linear, from: 0, to: 0.1}` grows over the nodes."""

    source: ClassVar[str] = "Li et al. 2022, Federated Learning on Non-IID Data Silos: An Experimental Study, arXiv 2102.02079"
    per_node: ClassVar[tuple[str, ...]] = ("sigma",)

    sigma: PerNode[float] = setting(help="its deviation", ge=0)
    nodes: Choice = setting(EVERYONE, "on which nodes")

    def change(self, of: Gathered, values: Tensor, facts: Facts, key: Tensor) -> Gathered:
        x = of.inputs
        drawn = normal(of.keys(key), x[0, 0].numel()).view(x.shape).to(x.dtype)
        return replace(of, inputs=x + values[:, 0].to(x.dtype).view(-1, *[1] * (x.dim() - 1)) * drawn)
