"""How long work and travel take, who is there, what breaks, and what it costs: pure functions of key, node, turn and time."""

from dataclasses import dataclass

from fedsim.part import setting
from fedsim.values import Population
from fedsim.world.attackers import Alie, Attackers, Gaussian, InnerProduct, LabelFlip, Liars, SignFlip
from fedsim.world.availability import Always, Availability, Bernoulli, Diurnal, Markov, Scheduled, Timetable, TraceAvailability
from fedsim.world.compute import Bursts, Compute, GilbertElliottBursts, Jitter
from fedsim.world.energy import Energy
from fedsim.world.faults import Faults
from fedsim.world.nature import Fate, Nature, Times
from fedsim.world.network import GilbertElliottLoss, Independent, Network, PacketLoss


@dataclass(frozen=True)
class World:
    """The world's parts. By default nothing takes time, all are there, nothing breaks."""

    compute: Compute = setting(Compute(), "seconds of work")
    network: Network = setting(Network(), "seconds of travel")
    availability: Availability = setting(Always(), "who is there")
    faults: Faults = setting(Faults(), "what breaks")
    energy: Energy | None = setting(None, "what it costs in joules; by default not counted")
    attackers: Attackers | None = setting(None, "who lies to the server, and how; by default nobody")

    def denominators(self, people: Population) -> list[int]:
        """Of the exact times, for the length of a tick."""
        compute, network, there = self.compute, self.network, self.availability
        fine = [time.denominator(people) for time in (compute.job, compute.step, compute.sample, network.latency)]
        return fine + (there.times(people) if isinstance(there, Scheduled) else [])


__all__ = [
    "Alie",
    "Always",
    "Attackers",
    "Availability",
    "Bernoulli",
    "Bursts",
    "Compute",
    "Diurnal",
    "Energy",
    "Fate",
    "Faults",
    "Gaussian",
    "GilbertElliottBursts",
    "GilbertElliottLoss",
    "Independent",
    "InnerProduct",
    "Jitter",
    "LabelFlip",
    "Liars",
    "Markov",
    "Nature",
    "Network",
    "PacketLoss",
    "Scheduled",
    "SignFlip",
    "Times",
    "Timetable",
    "TraceAvailability",
    "World",
]
