"""Machines that several nodes share, as the workers of a deployed run host them: settings, and which node is on which."""

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np

from fedsim.base.clock import Ints
from fedsim.base.keys import fold
from fedsim.settings.choice import Choice
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
        host, every, key = np.full(people.nodes, -1, dtype=np.int64), np.arange(people.nodes), fold(0, "hosts")
        for number, machine in enumerate(self.nodes):
            if machine == ():
                raise ValueError(f"machine {number} has no nodes (the first is 0)")
            for choice in machine if isinstance(machine, tuple) else (machine,):
                if choice.share is not None:
                    raise ValueError(f"machine {number}: nodes are named, such as `0..9`, not drawn as a share")
                ids = choice.ids  # most are, and machines may be very many
                at = np.flatnonzero(choice.mask(people, key)) if ids is None or ids[-1] >= people.nodes else every[ids.start : ids.stop]
                if len(twice := at[host[at] >= 0]):
                    where = f"on machines {host[twice[0]]} and {number}" if host[twice[0]] != number else f"twice on machine {number}"
                    raise ValueError(f"node {twice[0]} is {where} (the first is 0)")
                host[at] = number
        if len(missing := np.flatnonzero(host < 0)):
            raise ValueError(f"node {missing[0]} is on no machine, and each of the {people.nodes} nodes has one")
        return host
