"""How a server makes one update of many: the mean, and averages that some of the messages can't lead astray."""

# h: hearers, m: messages (one row each), d: numbers of a part, f: attackers

from collections.abc import Callable
from dataclasses import dataclass
from math import floor
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from fedsim.base.devices import sent
from fedsim.base.errors import SettingError, TooFew
from fedsim.settings.part import Part, setting
from fedsim.settings.values import Share

if TYPE_CHECKING:
    from fedsim.method.inbox import Inbox

SLAB = 1 << 22  # numbers sorted, or multiplied in float64, at once
Weights = Literal["samples", "uniform"]


class Average(Part):
    """One row a hearer of one part of its messages."""

    slot: ClassVar[str] = "average"
    default: ClassVar[str] = "mean"

    def of(self, inbox: "Inbox", name: str, weights: Weights, factor: Tensor | None = None) -> Tensor:
        """[h, ...] of the part `name`, of messages that `factor` [m] discounts; they count by samples or all the same.

        Raises ValueError where it has no meaning, TooFew where there are not enough messages.
        """
        raise NotImplementedError

    def check(self, messages: int) -> None:
        """Raises SettingError where merges of so many messages are too small."""


@dataclass(frozen=True)
class Mean(Average):
    """The mean, by `weights`."""

    def of(self, inbox: "Inbox", name: str, weights: Weights, factor: Tensor | None = None) -> Tensor:
        return inbox.mean(name, weights, factor)


@dataclass(frozen=True)
class ClippedMean(Average):
    """The mean, by `weights`, of messages none of which is longer than a set length, or than their median length."""

    source: ClassVar[str] = "Sun et al. 2019, Can You Really Backdoor Federated Learning?, arXiv 1911.07963 (norm clipping)"

    length: float | None = setting(None, "greatest length of a message; by default the median length of those merged", gt=0)

    def of(self, inbox: "Inbox", name: str, weights: Weights, factor: Tensor | None = None) -> Tensor:
        rows = at_one_server(inbox, name, None, self)
        lengths = torch.linalg.vector_norm(rows, dim=1) * (1 if factor is None else factor)
        most = lengths.median() if self.length is None else self.length
        clip = (most / lengths.clamp(min=torch.finfo(rows.dtype).tiny)).clamp(max=1)
        return inbox.mean(name, weights, clip if factor is None else clip * factor)


@dataclass(frozen=True)
class Median(Average):
    """The median of each coordinate, of an even number the mean of the middle two; each message counts once, whatever `weights`."""

    source: ClassVar[str] = "Yin et al. 2018, Byzantine-Robust Distributed Learning, arXiv 1803.01498"

    def of(self, inbox: "Inbox", name: str, weights: Weights, factor: Tensor | None = None) -> Tensor:
        rows = at_one_server(inbox, name, factor, self)
        return by_columns(rows, middle).view(1, *inbox[name].shape[1:])


@dataclass(frozen=True)
class GeometricMedian(Average):
    """The point with the least sum of distances to the messages, by `weights` (Weiszfeld's algorithm); not finite ones are left out."""

    source: ClassVar[str] = "Pillutla et al. 2022, Robust Aggregation for Federated Learning, arXiv 1912.13445 (RFA)"

    smoothing: float = setting(1e-6, "distances count as no less than this (nu)", gt=0)
    steps: int = setting(1000, "at most so many; it ends when no weight changes by more than 1e-9", ge=1)

    def of(self, inbox: "Inbox", name: str, weights: Weights, factor: Tensor | None = None) -> Tensor:
        rows, weight = at_one_server(inbox, name, factor, self), inbox.weight.double().cpu()
        products = gram(rows).cpu()  # few numbers, and many steps: the host's
        finite = products.diagonal().isfinite()
        there = (finite | ~finite.any()).nonzero()[:, 0]
        weight = (weight if weights == "samples" else torch.ones_like(weight))[there]
        shares = sent(self.shares(products[there][:, there], weight / weight.sum()).to(rows.dtype), rows.device)
        return (shares @ rows[sent(there, rows.device)]).view(1, *inbox[name].shape[1:])

    def shares(self, products: Tensor, weight: Tensor) -> Tensor:
        """[m]: how the median is made of the rows, by their inner products [m, m]. Distances to a mix of rows follow from these alone."""
        share = weight
        for _ in range(self.steps):
            mixed = products @ share
            distance = (products.diagonal() - 2 * mixed + share @ mixed).clamp(min=0).sqrt().clamp(min=self.smoothing)
            before, share = share, (weight / distance) / (weight / distance).sum()
            if float((share - before).abs().max()) < 1e-9:
                break
        return share


@dataclass(frozen=True)
class Robust(Average):
    """Against a known number of attackers' messages, of which a fast client has several in a buffer; each counts once."""

    abstract: ClassVar[bool] = True
    needs: ClassVar[tuple[int, int]] = (2, 1)  # (a, b): a x attackers + b messages

    attackers: int | Share = setting(0.2, "most messages of a merge that may be false: a number (f), or a share, rounded down", ge=0)

    def among(self, messages: int) -> int:
        """f of so many messages. Raises TooFew where they are too few for it."""
        f = floor(self.attackers * messages + 1e-9) if isinstance(self.attackers, float) else self.attackers
        least = self.needs[0] * f + self.needs[1]
        if messages < least:
            raise TooFew(f"`{self.name}` against {f} attackers needs {least} messages a merge, and there are {messages}")
        return f

    def check(self, messages: int) -> None:
        try:
            self.among(messages)
        except TooFew as error:
            raise SettingError("strategy.average", f"{error} at most; see `schedule`") from error

    def of(self, inbox: "Inbox", name: str, weights: Weights, factor: Tensor | None = None) -> Tensor:
        rows = at_one_server(inbox, name, factor, self)
        return self.row(rows, self.among(len(rows))).view(1, *inbox[name].shape[1:])

    def row(self, rows: Tensor, f: int) -> Tensor:
        """[d] of the rows [m, d] that count, of messages enough for f attackers."""
        raise NotImplementedError


@dataclass(frozen=True)
class TrimmedMean(Robust):
    """The mean of each coordinate without its f largest and f smallest numbers; each message counts once, whatever `weights`."""

    source: ClassVar[str] = "Yin et al. 2018, Byzantine-Robust Distributed Learning, arXiv 1803.01498"

    def row(self, rows: Tensor, f: int) -> Tensor:
        return by_columns(rows, lambda values: values[f : len(rows) - f].mean(0))


@dataclass(frozen=True)
class Choosing(Robust):
    """A row made of the messages with the least Krum scores alone; `inbox.chose` is told which."""

    abstract: ClassVar[bool] = True

    def kept(self, messages: int, f: int) -> int:
        """So many messages."""
        raise NotImplementedError

    def of(self, inbox: "Inbox", name: str, weights: Weights, factor: Tensor | None = None) -> Tensor:
        rows = at_one_server(inbox, name, factor, self)
        f = self.among(len(rows))
        chosen = nearest(rows, f, self.kept(len(rows), f))
        if inbox.chose:
            inbox.chose(chosen)
        return self.row(rows[chosen], f).view(1, *inbox[name].shape[1:])


@dataclass(frozen=True)
class Krum(Choosing):
    """The one message with the least sum of squared distances to the m - f - 2 nearest to it."""

    source: ClassVar[str] = "Blanchard et al. 2017, Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent"
    needs: ClassVar[tuple[int, int]] = (2, 3)

    def kept(self, messages: int, f: int) -> int:
        return 1

    def row(self, rows: Tensor, f: int) -> Tensor:
        return rows[0]


@dataclass(frozen=True)
class MultiKrum(Choosing):
    """The mean of the messages with the least scores (see `krum`); each counts once, whatever `weights`."""

    source: ClassVar[str] = "Blanchard et al. 2017, Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent"
    needs: ClassVar[tuple[int, int]] = (2, 3)

    keep: int | None = setting(None, "so many messages; by default m - f", ge=1)

    def among(self, messages: int) -> int:
        if self.keep is not None and self.keep > messages:
            raise TooFew(f"`{self.name}` keeps {self.keep} messages a merge, and there are {messages}")
        return super().among(messages)

    def kept(self, messages: int, f: int) -> int:
        return self.keep or messages - f

    def row(self, rows: Tensor, f: int) -> Tensor:
        return rows.new_full((len(rows),), 1 / len(rows)) @ rows


@dataclass(frozen=True)
class Bulyan(Choosing):
    """Of the m - 2f messages with the least scores (see `krum`), the mean of the m - 4f numbers nearest to their median, by coordinate.

    Each message counts once, whatever `weights`. All scores are from one computation; the paper makes those of the messages that are
    left anew after each choice.
    """

    source: ClassVar[str] = "El Mhamdi et al. 2018, The Hidden Vulnerability of Distributed Learning in Byzantium, arXiv 1802.07927"
    needs: ClassVar[tuple[int, int]] = (4, 3)

    def kept(self, messages: int, f: int) -> int:
        return messages - 2 * f

    def row(self, rows: Tensor, f: int) -> Tensor:
        return by_columns(rows, lambda values: central(values, len(rows) - 2 * f))


def at_one_server(inbox: "Inbox", name: str, factor: Tensor | None, average: Average) -> Tensor:
    """[m, d]: the part's rows, discounted. Raises ValueError where not all go to one hearer."""
    if inbox.hearer is not None:
        if inbox.task and inbox.task.architectures:
            raise ValueError(f"average `{average.name}` compares models of one architecture, and groups have models of their own")
        raise ValueError(f"average `{average.name}` is a server's: a peer takes in nothing but its own update")
    rows = inbox[name].flatten(1)
    return rows if factor is None else rows * factor.to(rows.dtype)[:, None]


def by_columns(rows: Tensor, of: Callable[[Tensor], Tensor]) -> Tensor:
    """[d]: what `of` makes of the columns of rows [m, d]; it gets some at a time, each sorted [m, k], nan last."""
    return torch.cat([of(ordered(part)) for part in torch.split(rows, max(1, SLAB // len(rows)), 1)])


def ordered(values: Tensor) -> Tensor:
    """[m, k]: each column sorted; by NumPy on a CPU, which takes a tenth of the time."""
    return torch.from_numpy(np.sort(values.numpy(), 0)) if values.device.type == "cpu" else values.sort(0).values


def middle(values: Tensor) -> Tensor:
    """[k]: medians of sorted columns [m, k]."""
    return (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2


def central(values: Tensor, count: int) -> Tensor:
    """[k]: of sorted columns [m, k] the mean of the `count` numbers nearest to the median, which are neighbours."""
    median = middle(values)
    start = (median - values[: len(values) - count] > values[count:] - median).sum(0)  # so many on the left are further than on the right
    return values.gather(0, start + torch.arange(count, device=values.device)[:, None]).mean(0)


def gram(rows: Tensor) -> Tensor:
    """float64 [m, m]: inner products of rows [m, d], some columns at a time."""
    found = rows.new_zeros(len(rows), len(rows), dtype=torch.float64)
    for part in torch.split(rows, max(1, SLAB // len(rows)), 1):
        found.addmm_(part.double(), part.double().T)
    return found


def nearest(rows: Tensor, f: int, count: int) -> Tensor:
    """int64 [count], rising: the rows with the least Krum scores, of equal ones the first; rows that are not finite come last."""
    products = gram(rows)
    lengths = products.diagonal()
    distance = (lengths[:, None] + lengths - 2 * products).clamp(min=0).nan_to_num(torch.inf, torch.inf)
    distance.fill_diagonal_(torch.inf)
    score = distance.sort(1).values[:, : len(rows) - f - 2].sum(1)
    return score.argsort(stable=True)[:count].sort().values
