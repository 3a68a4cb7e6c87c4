"""How a server makes one update of many."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from torch import Tensor

from fedsim.part import Part

if TYPE_CHECKING:
    from fedsim.strategy import Inbox


class Average(Part):
    """One row a hearer of one part of its messages."""

    slot: ClassVar[str] = "average"
    default: ClassVar[str] = "mean"

    def of(self, inbox: "Inbox", name: str, weights: Literal["samples", "uniform"]) -> Tensor:
        """[h, ...] of the part `name`; messages count by samples or all the same. Raises ValueError where it has no meaning."""
        raise NotImplementedError


@dataclass(frozen=True)
class Mean(Average):
    """The weighted mean."""

    def of(self, inbox: "Inbox", name: str, weights: Literal["samples", "uniform"]) -> Tensor:
        return inbox.mean(name, weights)
