"""Rounds in which all work and the slow are left behind, if a code allows it."""

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from fedsim.base.clock import FOREVER, Ints
from fedsim.base.errors import SettingError
from fedsim.base.rows import Rows
from fedsim.schedule import Schedule
from fedsim.schedule.news import joined
from fedsim.schedule.verbs import Verbs


@runtime_checkable
class Patient(Protocol):
    """A strategy that says how long to wait, and whether a round may end with those who came. Its state counts `waits` for all."""

    patience: float

    def conforms(self, state: Rows, came: Ints) -> bool:
        """May it?"""


@dataclass(frozen=True)
class Coded(Schedule):
    """All work; the round ends at (1 + patience) times the fastest one's time, or with the last. Where those who are slow then break
    the scheme's model of slowness, all are waited for, and nobody was slow."""

    source: ClassVar[str] = "Krishnan et al. 2023"
    rounds: ClassVar[bool] = True

    def check(self, fed: Verbs) -> None:
        if not isinstance(fed.strategy, Patient):
            raise SettingError("schedule", f"`{self.name}` rounds are those of `gradient_coding`, not of `{fed.strategy.name}`")
        if not fed.nature.certain:
            raise SettingError("world", "`gradient_coding` waits for all where too many are slow; here some may never come")

    def run(self, fed: Verbs) -> None:
        assert isinstance(fed.strategy, Patient)
        while fed.running():
            start = fed.now
            fed.send(fed.idle())
            news = fed.receive(1, ahead=False)
            limit = min(float(FOREVER), start + (1 + fed.strategy.patience) * (fed.now - start))
            news = joined(news, fed.receive(fed.in_flight, until=int(limit), ahead=False))
            if fed.in_flight and not fed.strategy.conforms(fed.state, news.node):
                news = joined(news, fed.receive())
                fed.state["waits"] += 1
            fed.cancel()
            fed.merge(news)
