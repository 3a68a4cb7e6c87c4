"""Whether a run still makes sense: it ends with a message where nothing can happen any more, or a model is no longer finite."""

from typing import ClassVar

import torch
from torch import Tensor

from fedsim.errors import RunError
from fedsim.strategy import Inbox

PATIENCE = 10_000  # empty merges in a row at one time
HOPE = 20_000  # jobs in a row from which nothing arrived, or empty merges in a row while nobody works


class Health:
    """Who was heard from last, and how long nobody was."""

    keeps: ClassVar[tuple[str, ...]] = ("senders", "silent", "silent_since", "idle", "fruitless")

    def __init__(self) -> None:
        self.senders: list[int] = []
        self.silent, self.silent_since = 0, -1
        self.idle = self.fruitless = 0

    def heard(self, inbox: Inbox, model: Tensor, round: int) -> None:
        """After a merge; `model` is what it changed. Raises RunError, naming round and clients, where that is not finite."""
        self.senders, self.silent, self.idle = inbox.sender.tolist(), 0, 0
        if bool(torch.isfinite(model.sum())) or bool(torch.isfinite(model).all()):  # the sum is three times as fast, and more
            return
        bad = torch.zeros(len(inbox.sender), dtype=torch.bool, device=model.device)
        for rows in inbox.parts.values():
            bad |= ~torch.isfinite(rows.flatten(1).float()).all(1)
        self.senders = inbox.sender[bad].tolist() or self.senders
        what = f"diverged in round {round}: the model is not finite {self.after()}"
        raise RunError(f"{what}; try a smaller `train.lr`, or `train.clip`")

    def nothing(self, now: int, in_flight: int, round: int) -> None:
        """After a merge without news. Raises RunError where nobody works and nobody comes, at once where no time passes either."""
        self.idle = 0 if in_flight else self.idle + 1
        if in_flight or now != self.silent_since:
            self.silent, self.silent_since = 0, now
        self.silent += 1
        if self.silent >= PATIENCE or self.idle >= HOPE:
            what = f"nobody was there in {max(self.silent, self.idle):,} rounds in a row; see `world.availability` and `schedule.sampling`"
            raise RunError(f"round {round}: {what}")

    def ended(self, jobs: int, arrived: int, round: int) -> None:
        """After so many jobs came to an end. Raises RunError where of very many in a row none arrived."""
        self.fruitless = 0 if arrived else self.fruitless + jobs
        if self.fruitless >= HOPE:
            what = "all crashed, got lost, were dropped or came too late; see `world.faults`, `world.availability` and `schedule`"
            raise RunError(f"round {round}: {self.fruitless:,} jobs in a row brought no update: {what}")

    def after(self) -> str:
        """Who sent what was merged last, for messages."""
        return f"after the updates of clients {self.clients()}" if self.senders else "before any update was merged"

    def clients(self) -> str:
        """The senders of the last merge, for messages."""
        more = len(self.senders) - 8
        return ", ".join(map(str, self.senders[:8])) + (f" and {more} more" if more > 0 else "")
