"""How long work and travel take, who is there, what breaks, and what it costs: pure functions of key, node, turn and time."""

from fedsim.world.attackers import Alie, Attackers, Gaussian, InnerProduct, LabelFlip, Liars, SignFlip
from fedsim.world.availability import Always, Availability, Bernoulli, Diurnal, Markov, Scheduled, Timetable, TraceAvailability
from fedsim.world.compute import Bursts, Compute, GilbertElliottBursts, Jitter
from fedsim.world.edges import Edges
from fedsim.world.energy import Energy
from fedsim.world.faults import Faults
from fedsim.world.hosts import Hosts
from fedsim.world.job_times import FileTimes
from fedsim.world.nature import Fate, Nature, Times
from fedsim.world.network import GilbertElliottLoss, Independent, Network, PacketLoss
from fedsim.world.world import World

__all__ = [
    "Alie",
    "Always",
    "Attackers",
    "Availability",
    "Bernoulli",
    "Bursts",
    "Compute",
    "Diurnal",
    "Edges",
    "Energy",
    "Fate",
    "Faults",
    "FileTimes",
    "Gaussian",
    "GilbertElliottBursts",
    "GilbertElliottLoss",
    "Hosts",
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
