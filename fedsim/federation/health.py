"""Whether a run still makes sense: it ends with a message where nothing can happen any more, or a model is no longer finite."""

import math
from typing import ClassVar, NoReturn

import torch
from torch import Tensor

from fedsim.base.errors import Diverged, RunError
from fedsim.method.companion import Companion, Merged

PATIENCE = 10_000  # empty merges in a row at one time
LATE = 16  # models on a GPU that are looked at together, because each look waits for it
HOPE = 20_000  # jobs in a row from which nothing arrived, or empty merges in a row while nobody works


class Health(Companion):
    """Who was heard from last, and how long nobody was."""

    keeps: ClassVar[tuple[str, ...]] = ("senders", "silent", "silent_since", "idle", "fruitless")

    def __init__(self) -> None:
        self.senders: list[int] = []
        self.silent, self.silent_since = 0, -1
        self.idle = self.fruitless = 0
        self.unread: list[tuple[int, list[int], Tensor]] = []  # round, senders, and the sum of a model on a GPU

    def merged(self, merged: Merged) -> None:
        """Raises RunError, naming round and clients, where what was changed is not finite, or nobody is heard from any more."""
        if len(merged.news.node):
            self._heard(merged)
        else:
            self._nothing(merged)

    def _heard(self, merged: Merged) -> None:
        self.senders, self.silent, self.idle, model = merged.news.node.tolist(), 0, 0, merged.models
        if model.device.type != "cpu":
            self.unread.append((merged.round, self.senders, model.sum(dtype=torch.float64)))
            if len(self.unread) >= LATE:
                self.flush()
            return
        if math.isfinite(float(model.sum())) or bool(torch.isfinite(model).all()):  # the sum is three times as fast, and more
            return
        bad = torch.zeros(len(self.senders), dtype=torch.bool, device=model.device)
        for rows in merged.parts.values():
            bad |= ~torch.isfinite(rows.flatten(1).float()).all(1)
        self.senders = merged.news.node[bad.cpu().numpy()].tolist() or self.senders
        self._diverged(merged.round)

    def flush(self) -> None:
        """Looks at the models of a GPU that nobody has looked at. Raises RunError, naming the first round, where one is not finite."""
        unread, self.unread = self.unread, []
        for (round, senders, _), total in zip(unread, torch.stack([one[2] for one in unread]).tolist() if unread else [], strict=True):
            if not math.isfinite(total):
                self.senders = senders
                self._diverged(round)

    def _diverged(self, round: int) -> NoReturn:
        what = f"diverged in round {round + 1}: the model is not finite {self.after()}"
        raise Diverged(f"{what}; try a smaller `train.lr`, or `train.clip`")

    def _nothing(self, merged: Merged) -> None:
        """Nobody comes; where nobody works that is hopeless in the end, at once where no time passes either."""
        self.idle = 0 if merged.in_flight else self.idle + 1
        if merged.in_flight or merged.now != self.silent_since:
            self.silent, self.silent_since = 0, merged.now
        self.silent += 1
        if self.silent >= PATIENCE or self.idle >= HOPE:
            what = f"nobody was there in {max(self.silent, self.idle):,} rounds in a row; see `world.availability` and `schedule.sampling`"
            raise RunError(f"round {merged.round + 1}: {what}")

    def ended(self, jobs: int, arrived: int, round: int) -> None:
        """Raises RunError where of very many jobs in a row none arrived."""
        self.fruitless = 0 if arrived else self.fruitless + jobs
        if self.fruitless >= HOPE:
            what = "all crashed, got lost, were dropped or came too late; see `world.faults`, `world.availability` and `schedule`"
            raise RunError(f"round {round + 1}: {self.fruitless:,} jobs in a row brought no update: {what}")

    def after(self) -> str:
        """Who sent what was merged last, for messages."""
        return f"after the updates of clients {self.clients()}" if self.senders else "before any update was merged"

    def clients(self) -> str:
        """The senders of the last merge, for messages."""
        more = len(self.senders) - 8
        return ", ".join(map(str, self.senders[:8])) + (f" and {more} more" if more > 0 else "")
