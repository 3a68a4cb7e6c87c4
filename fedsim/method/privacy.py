"""What is done to messages so that a model tells little of any client: the slot's base."""

from typing import Any, ClassVar

from fedsim.base.rows import Rows
from fedsim.method.companion import Companion
from fedsim.method.local import Local
from fedsim.schedule.verbs import Verbs
from fedsim.settings.part import Part
from fedsim.task.task import Task


class Account(Companion):
    """What a run has spent of a privacy budget."""

    noise = 0.0  # in clips
    privacy: "Privacy"  # with its noise, once that is known
    adapt: Any = None  # how the clip follows messages, where it does
    clip = 0.0  # of the next merge

    @property
    def epsilon(self) -> float:
        """Spent so far, by who spent most."""
        raise NotImplementedError

    def used(self, budget: float) -> float:
        """Share of a budget; 1 or more where one more merge could exceed it. Raises SettingError where the first could."""
        raise NotImplementedError


class Privacy(Part):
    """What is done to messages before a model is made of them."""

    slot: ClassVar[str] = "privacy"
    default: ClassVar[str] = "gaussian"
    modules: ClassVar[tuple[str, ...]] = ("fedsim.privacy.gaussian",)

    @property
    def at_server(self) -> bool:
        """Does it need one?"""
        return True

    def check(self, strategy: Any, task: Task) -> None:
        """Raises SettingError where it has no meaning for the method (a Strategy) or the task."""

    def local(self, gradients: int, *args: Any, **named: Any) -> Local:
        """Jobs as a method sees them that takes so many gradients a step; the rest is for `Local`."""
        return Local(*args, **named)

    def gradients(self, batch: int) -> int:
        """So many of a job may be taken at once, each as of a model of its own; `batch` samples a step."""
        return 1

    def clipped(self, parts: Rows) -> Rows:
        """Messages [m] as their clients send them."""
        raise NotImplementedError

    def account(self, fed: Verbs, strategy: Any, task: Task, planned: int | None) -> Account:
        """Of a run with `planned` rounds, if that is known. Raises SettingError where it has no meaning."""
        raise NotImplementedError
