"""Edge servers as a world has them: settings."""

from dataclasses import dataclass
from typing import ClassVar

from fedsim.settings.part import Part, setting
from fedsim.world.availability import Always, Availability
from fedsim.world.network import Network


@dataclass(frozen=True)
class Edges(Part):
    """An edge server is to whom is above it what a node is to a server: it has a link, and may be away. Values per node are per edge,
    those of the first level first."""

    slot: ClassVar[str] = "edges"
    name: ClassVar[str] = "standard"
    default: ClassVar[str] = "standard"

    network: Network = setting(Network(), "seconds of travel between an edge server and whom it reports to, or other edge servers")
    availability: Availability = setting(Always(), "which are up; those that are down ask nobody, report nothing and hear nothing")
