"""What breaks: settings."""

from dataclasses import dataclass
from typing import ClassVar

from fedsim.settings.part import Part, setting
from fedsim.settings.values import PerNode, Share
from fedsim.world.network import NEVER


@dataclass(frozen=True)
class Faults(Part):
    """Chances a job. A crash stops the work at a uniformly drawn point of it; a lost update costs its travel and never arrives."""

    slot: ClassVar[str] = "faults"
    name: ClassVar[str] = "standard"
    default: ClassVar[str] = "standard"

    crash: PerNode[Share] = setting(NEVER, "chance that the client crashes during the work", ge=0, le=1)
    lost: PerNode[Share] = setting(NEVER, "chance that the update gets lost on the way", ge=0, le=1)
