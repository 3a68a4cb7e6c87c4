"""Who works when, and who hears whom: loops over the federation's verbs. A loop may be left at any `running()` and begun again."""

from fractions import Fraction
from typing import ClassVar

import numpy as np

from fedsim.base.clock import Ints
from fedsim.base.errors import SettingError
from fedsim.schedule.verbs import Verbs
from fedsim.settings.part import Part
from fedsim.settings.values import Floats
from fedsim.topology import Mixing


class Schedule(Part):
    """The order of work. `peers`: each node is its own hearer and no server exists. `rounds`: who works begins together, and one merge
    (or mixing step) ends it; methods ask for that, and for what the methods below promise, never for a class.
    """

    slot: ClassVar[str] = "schedule"
    default: ClassVar[str] = "rounds"
    modules: ClassVar[tuple[str, ...]] = (
        "fedsim.schedule.server",
        "fedsim.schedule.peers",
        "fedsim.schedule.hierarchy",
        "fedsim.coding.rounds",
    )
    peers: ClassVar[bool] = False
    rounds: ClassVar[bool] = False

    @property
    def served(self) -> bool:
        """Is there one server, whose state the method's is?"""
        return not self.peers

    def run(self, fed: Verbs) -> None:
        """Works until the federation says stop; all it knows stands in the federation."""
        raise NotImplementedError

    def check(self, fed: Verbs) -> None:
        """Raises SettingError where the schedule does not fit the task or the world."""

    def check_peers(self, fed: Verbs) -> None:
        """Raises SettingError where there is no such graph of the nodes; asked before sizes and times are known."""

    def times(self) -> list[Fraction]:
        """Its exact times, for the length of a tick."""
        return []

    def exchanges(self, fed: Verbs) -> tuple[Ints, Ints]:
        """Models that each peer sends and hears around a job that begins now, int64 [nodes] each."""
        return np.zeros(fed.nodes, dtype=np.int64), np.zeros(fed.nodes, dtype=np.int64)

    def graph(self, fed: Verbs) -> Mixing | None:
        """Who hears whom in the first round; None with a server."""
        return None

    def gap(self, fed: Verbs) -> float | None:
        """The graph's spectral gap a round over the last rounds; None with a server, and where it takes long to find out."""
        return None

    def finish(self, fed: Verbs) -> bool:
        """Does what is still due when the run has come to its end; whether there was anything."""
        return False

    def frequency(self, fed: Verbs) -> Floats:
        """How often each node takes part, times a merge, float64 [nodes]. Raises ValueError where that isn't known beforehand."""
        raise ValueError(f"the schedule `{self.name}` knows no frequencies of taking part")

    def samples(self) -> bool:
        """Does each message come with the probability that its sender was asked?"""
        return False

    def expected(self, fed: Verbs) -> float:
        """Messages a merge on average, if nothing breaks. Raises ValueError where that isn't known beforehand."""
        raise ValueError(f"the schedule `{self.name}` doesn't say how many messages a merge has")

    def coin(self, fed: Verbs) -> float | None:
        """Where a node's own coin alone decides whether it stands in a merge, the greatest chance of any; None elsewhere."""
        return None

    def repeats(self) -> int:
        """Most messages of one node in one merge."""
        return 1

    def concurrency_limit(self, nodes: int) -> int:
        """Most jobs in flight at once."""
        return nodes

    def most_messages(self, nodes: int) -> int:
        """Of the first merge, at most."""
        return nodes

    def fewest_messages(self, nodes: int, rounds: int) -> int:
        """Of so many rounds' merges, where no one is late or lost: of the one that has the fewest, at most."""
        return self.most_messages(nodes)

    def all_work(self, nodes: int) -> bool:
        """Does each of so many nodes begin one job in each round?"""
        return False

    def staleness_limit(self) -> int | None:
        """Merges that an update can miss at most; None: no bound is promised."""
        return None

    def merges_a_round(self, nodes: int) -> int:
        """A round is one merge of the server, a mixing step of all peers, or n pairwise merges."""
        return 1


def needs_time(fed: Verbs, schedule: Schedule) -> None:
    idle = np.flatnonzero(fed.durations() == 0)
    if len(idle):
        some = f"node {idle[0]}'s jobs take" if len(idle) < fed.nodes else "jobs take"
        raise SettingError("world", f"{some} no time, which `{schedule.name}` can't order; set `world.compute` or `world.network`")
