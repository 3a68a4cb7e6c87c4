"""Who talks to whom among peers: graphs, their mixing weights, and how they change."""

from fedsim.topology.base import Topology
from fedsim.topology.graphs import Complete, Ring
from fedsim.topology.mixing import Keep, Mixing

__all__ = ["Complete", "Keep", "Mixing", "Ring", "Topology"]
