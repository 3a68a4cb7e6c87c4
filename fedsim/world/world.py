"""The world's parts together."""

from dataclasses import dataclass

from fedsim.settings.part import setting
from fedsim.settings.values import Population
from fedsim.world.attackers import Attackers
from fedsim.world.availability import Always, Availability, Scheduled
from fedsim.world.compute import Compute
from fedsim.world.edges import Edges
from fedsim.world.energy import Energy
from fedsim.world.faults import Faults
from fedsim.world.hosts import Hosts
from fedsim.world.network import Network


@dataclass(frozen=True)
class World:
    """The world's parts. By default nothing takes time, all are there, nothing breaks."""

    compute: Compute = setting(Compute(), "seconds of work")
    network: Network = setting(Network(), "seconds of travel")
    availability: Availability = setting(Always(), "who is there")
    faults: Faults = setting(Faults(), "what breaks")
    energy: Energy | None = setting(None, "what it costs in joules; by default not counted")
    attackers: Attackers | None = setting(None, "who lies to the server, and how; by default nobody")
    hosts: Hosts | None = setting(None, "which nodes share a machine; by default each has its own")
    edges: Edges | None = setting(None, "links and failures of edge servers, under the schedule `hierarchy`; by default none")

    def denominators(self, people: Population) -> list[int]:
        """Of the exact times, for the length of a tick."""
        compute, network = self.compute, self.network
        fine = [time.denominator(people) for time in (compute.job, compute.step, compute.sample, network.latency)]
        if self.edges is not None:
            there, latency = self.edges.availability, self.edges.network.latency
            fine += [latency.denominator(people)] if latency.constant is not None else []  # how many edges there are the schedule knows
            fine += there.times(people) if isinstance(there, Scheduled) else []
        if self.hosts is not None:
            fine += [self.hosts.stack.denominator(people), (self.hosts.merge * 10**9).denominator]
        return fine + (self.availability.times(people) if isinstance(self.availability, Scheduled) else [])
