"""Who works when, and who hears whom."""

from fedsim.schedule.base import Schedule
from fedsim.schedule.hierarchy import Hierarchy
from fedsim.schedule.peers import Gossip, Pairwise
from fedsim.schedule.server import Buffered, Rounds, Ticks

__all__ = ["Buffered", "Gossip", "Hierarchy", "Pairwise", "Rounds", "Schedule", "Ticks"]
