"""Methods with replicated parameters: every node holds the same state bit by bit, and only what changes it travels."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from fedsim.base.errors import SettingError
from fedsim.method.inbox import State
from fedsim.method.strategy import Strategy
from fedsim.settings.part import setting
from fedsim.task.task import Task


@dataclass(frozen=True)
class Replicated(Strategy):
    """Methods of which each node makes the merge itself: it hears the others' messages, never the state, which it has.

    The hearer stands for all replicas: what it broadcasts is handed to jobs as one row, and not billed. All start from one model.
    """

    abstract: ClassVar[bool] = True
    one_hearer: ClassVar[bool] = True
    weighs: ClassVar[bool] = False

    catch_up: Literal["weights", "replay"] = setting(
        "weights", "what a node that joins or missed merges hears: the whole state, or the log of all messages that it has not taken in"
    )

    def start(self, x: Tensor, task: Task) -> State:
        if task.buffers.size:
            raise SettingError("task.model", f"has running statistics, which would differ between the replicas of `{self.name}`")
        return {"model": x}

    def fits(self) -> None:
        """Raises SettingError where schedule, downlink or privacy have no meaning with replicas."""
        if self.privacy is not None:
            raise SettingError("privacy", f"a server adds its noise, and under `{self.name}` nodes hear each other's messages themselves")
        if not self.schedule.rounds or self.schedule.staleness_limit() != 0:
            raise SettingError("schedule", f"`{self.name}` needs replicas that are equal when work begins: `rounds` with `late: drop`")
        if not self.downlink.lossless:
            raise SettingError("downlink", f"under `{self.name}` nodes hear each other's messages as the uplink made them")
