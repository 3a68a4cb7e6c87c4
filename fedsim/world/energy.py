"""What work and travel cost in joules."""

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from fedsim.settings.part import Part, setting
from fedsim.settings.values import PerNode, Power

NO_POWER: PerNode[Fraction] = PerNode(Fraction(0))


@dataclass(frozen=True)
class Energy(Part):
    """Joules of a job = watts x the seconds that each of its parts took, up to its end; a column of the events and `energy/joules`."""

    slot: ClassVar[str] = "energy"
    name: ClassVar[str] = "standard"
    default: ClassVar[str] = "standard"

    compute: PerNode[Power] = setting(NO_POWER, "power during the work", ge=0)
    send: PerNode[Power] = setting(NO_POWER, "power during the way up, and of peers during their exchange", ge=0)
    receive: PerNode[Power] = setting(NO_POWER, "power during the way down", ge=0)
