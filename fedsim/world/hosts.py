"""Machines that several nodes share, as the workers of a deployed run host them: settings, and which node is on which."""

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from fedsim.base.clock import Ints
from fedsim.settings.choice import Choice, places
from fedsim.settings.part import Part, setting
from fedsim.settings.values import PerNode, Population, Time
from fedsim.world.compute import NOTHING


@dataclass(frozen=True, kw_only=True)
class Hosts(Part):
    """Nodes on one machine share its processor and its link; `network` is then the machine's.

    What waits at a machine is computed together, at most `together` jobs: seconds of a stack = `stack` + the longest `step` x steps +
    the sum of all `job` + `sample` x samples. A model that several of its nodes hear travels to it once. Each way of its link carries
    one message after the other, and the replies of a stack are one message.
    """

    slot: ClassVar[str] = "hosts"
    name: ClassVar[str] = "standard"
    default: ClassVar[str] = "standard"
    listed: ClassVar[str] = "nodes"

    nodes: tuple[Choice | tuple[Choice, ...], ...] = setting(help="of each machine: `[0..24, 25..49]`, or a list of a machine's")
    together: int | None = setting(None, "jobs of a stack at most; by default the engine's `chunk`", ge=1)
    stack: PerNode[Time] = setting(NOTHING, "for each stack of jobs", ge=0)
    merge: Time = setting(Fraction(0), "of the server, from the last reply of a merge until it goes on", ge=0)

    def of_nodes(self, people: Population) -> Ints:
        """int64 [nodes]: the machine of each. Raises ValueError where one is on none or on two, or a machine has none."""
        return places(self.nodes, people, "machine")
