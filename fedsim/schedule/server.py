"""Schedules with a server: rounds, a buffer, and fixed intervals."""

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Literal

import numpy as np

from fedsim.base.errors import SettingError, placed
from fedsim.schedule.admission import Admission
from fedsim.schedule.base import Schedule, needs_time
from fedsim.schedule.frequency import merged_together
from fedsim.schedule.sampling import Sampling, UniformSampling
from fedsim.schedule.verbs import Verbs
from fedsim.settings.part import setting
from fedsim.settings.values import Constant, Count, Curve, Floats, Time


@dataclass(frozen=True)
class Rounds(Schedule):
    """Synchronous rounds: a cohort works, its updates are merged together (McMahan et al. 2017)."""

    source: ClassVar[str] = "McMahan et al. 2017"
    rounds: ClassVar[bool] = True

    cohort: Count = setting(Count(10), "nodes asked a round: a number, a share or `all`")
    growth: Curve = setting(Constant(1.0), "times `cohort`: nodes asked in each round, to the nearest number, at least 1 and at most all")
    sampling: Sampling = setting(UniformSampling(), "how they are drawn; the method knows the probabilities")
    wait_for: int | None = setting(None, "merge when so many of the round's cohort have arrived; by default all", ge=1)
    deadline: Time | None = setting(None, "merge at this time after the start of the round at the latest", gt=0)
    late: Literal["drop", "keep"] = setting("drop", "what comes too late is cancelled, or joins a later merge with its age")

    def check(self, fed: Verbs) -> None:
        if not self.sampling.sized and (self.cohort.strict or not self.steady):
            key = "cohort" if self.cohort.strict else "growth"
            raise SettingError(f"schedule.{key}", f"`{self.sampling.name}` sampling decides the size of a cohort itself")
        with placed("schedule.cohort"):
            cohort = self.asked(fed.nodes)
        if self.sampling.sized and self.wait_for and self.wait_for > cohort:
            raise SettingError("schedule.wait_for", f"{self.wait_for} of a cohort of {cohort}")

    @property
    def steady(self) -> bool:
        """Are all cohorts of one size?"""
        return isinstance(self.growth, Constant)

    def asked(self, nodes: int, turn: int = 0) -> int:
        """How many of so many nodes are asked in a round. Raises ValueError where a written number is above `nodes`."""
        return min(nodes, max(1, round(self.cohort.of(nodes) * float(self.growth.at(np.array([turn]))[0]))))

    def times(self) -> list[Fraction]:
        return [self.deadline] if self.deadline else []

    def samples(self) -> bool:
        return not (self.wait_for or self.deadline)

    def concurrency_limit(self, nodes: int) -> int:
        return self.asked(nodes) if self.sampling.sized and self.steady and self.late == "drop" else nodes

    def most_messages(self, nodes: int) -> int:
        return min(self.wait_for or nodes, self.asked(nodes) if self.sampling.sized else nodes)

    def fewest_messages(self, nodes: int, rounds: int) -> int:
        least = 0 if self.steady else int(self.growth.at(np.arange(min(rounds, 10**6))).argmin())
        return min(self.most_messages(nodes), self.asked(nodes, least) if self.sampling.sized else nodes)

    def all_work(self, nodes: int) -> bool:
        return self.sampling.sized and self.steady and self.asked(nodes) == nodes

    def staleness_limit(self) -> int | None:
        return 0 if self.late == "drop" else None

    def frequency(self, fed: Verbs) -> Floats:
        if self.wait_for or self.deadline or not fed.nature.certain:
            raise ValueError("frequencies are unknown where clients can be late, away or lost")
        return self._chances(fed)

    def _chances(self, fed: Verbs) -> Floats:
        """With all free. Raises ValueError where they change."""
        if not self.steady:
            raise ValueError("cohorts change in size over rounds (`schedule.growth`)")
        return self.sampling.chances(np.arange(fed.nodes), self.asked(fed.nodes), fed.share, fed.nature.people, fed.key("cohort"))

    def expected(self, fed: Verbs) -> float:
        return min(float(self._chances(fed).sum()), self.wait_for or fed.nodes)

    def coin(self, fed: Verbs) -> float | None:
        return float(self._chances(fed).max()) if self.sampling.coins and self.samples() else None

    def run(self, fed: Verbs) -> None:
        keep = self.late == "keep"
        while fed.running():
            cohort, since = fed.sample(self.sampling, Count(self.asked(fed.nodes, fed.round))), fed.sent if keep else 0
            fed.send(cohort.nodes, cohort.chance if self.samples() else None)
            until = fed.now + fed.ticks(self.deadline) if self.deadline else None
            # with all at work or away, the round ends with the first who comes
            wanted, since = (self.wait_for or len(cohort.nodes), since) if len(cohort.nodes) else (1, 0)
            fed.merge(fed.receive(wanted, until, since=since, ahead=keep))
            if not keep:
                fed.cancel()


@dataclass(frozen=True)
class Buffered(Schedule):
    """A merge whenever `size` updates are in; those who return start again at once (FedBuff), with size 1 asynchronous (FedAsync)."""

    source: ClassVar[str] = "Nguyen et al. 2022"

    size: int = setting(10, "updates a merge", ge=1)
    concurrency: Count = setting(Count(), "nodes at work at once: a number, a share or `all`")
    restart: Literal["arrival", "merge"] = setting(
        "arrival", "who returns makes room for the next at once, or at the next merge (FedFix's frame)"
    )
    max_staleness: int | None = setting(
        None,
        "merges that an update may miss (AReaL's eta): no more work begins than can be merged in time, and a merge waits for old work",
        ge=0,
    )

    def check(self, fed: Verbs) -> None:
        with placed("schedule.concurrency"):
            busy = self.concurrency.of(fed.nodes)
        if self.restart == "merge" and self.size > busy:
            raise SettingError("schedule.size", f"{self.size} updates a merge, but only {busy} nodes at work")
        needs_time(fed, self)

    def expected(self, fed: Verbs) -> float:
        return self.size

    def repeats(self) -> int:
        return self.size if self.restart == "arrival" else 1

    def admission(self) -> Admission | None:
        """The rule that bounds staleness, where it is bounded."""
        return None if self.max_staleness is None else Admission(self.size, self.max_staleness)

    def staleness_limit(self) -> int | None:
        return self.max_staleness

    def concurrency_limit(self, nodes: int) -> int:
        busy, admission = self.concurrency.of(nodes), self.admission()
        return min(busy, admission.room(0, 0)) if admission else busy

    def most_messages(self, nodes: int) -> int:
        return self.size

    def frequency(self, fed: Verbs) -> Floats:
        foreseen = fed.nature.certain and fed.nature.steady and self.max_staleness is None
        if not foreseen or self.concurrency_limit(fed.nodes) < fed.nodes:
            raise ValueError(
                "frequencies are known beforehand only where all nodes are always at work, at one speed, nothing breaks and none waits"
            )
        durations = fed.durations()
        if self.restart == "arrival" or self.size == 1:
            rate: Floats = self.size / durations
            return rate / float((1 / durations).sum())
        return merged_together(durations, self.size, merges=max(2000, 200 * fed.nodes // self.size))

    def run(self, fed: Verbs) -> None:
        busy, admission = self.concurrency.of(fed.nodes), self.admission()
        while fed.running():
            free = busy - fed.in_flight
            fed.send(fed.idle(min(free, fed.room(admission)) if admission else free))
            fed.merge(fed.receive(self.size, refill=self.restart == "arrival", admission=admission))


@dataclass(frozen=True)
class Ticks(Schedule):
    """A merge at fixed intervals, of whatever has arrived; then those start again (FedFix)."""

    source: ClassVar[str] = "Fraboni et al. 2023"

    every: Time = setting(Fraction(1), "interval between merges", gt=0)

    def check(self, fed: Verbs) -> None:
        needs_time(fed, self)

    def times(self) -> list[Fraction]:
        return [self.every]

    def frequency(self, fed: Verbs) -> Floats:
        if not (fed.nature.certain and fed.nature.steady):
            raise ValueError("frequencies are unknown where clients can be away or lost, or their times vary")
        return 1 / -(-fed.durations() // fed.ticks(self.every)).astype(np.float64)

    def expected(self, fed: Verbs) -> float:
        return float(self.frequency(fed).sum())

    def run(self, fed: Verbs) -> None:
        every = fed.ticks(self.every)
        while fed.running():
            fed.send(fed.idle())
            tick = (fed.now // every + 1) * every
            fed.merge(fed.receive(until=tick))
