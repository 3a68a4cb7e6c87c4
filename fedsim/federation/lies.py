"""Attackers' messages: what reaches a hearer in the place of what they computed, and how often an average takes one for good."""

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from fedsim.base.devices import sent
from fedsim.method.companion import Companion
from fedsim.method.inbox import Inbox
from fedsim.schedule.news import News
from fedsim.world.attackers import Liars


class Lies(Companion):
    """All messages of a merge are in the attackers' sight. `chosen` counts messages that averages chose, `false` attackers' among them."""

    keeps: ClassVar[tuple[str, ...]] = ("chosen", "false")

    def __init__(self, liars: Liars) -> None:
        self.liars = liars
        self.chosen, self.false = 0, torch.zeros((), dtype=torch.int64)

    def seen(self, inbox: Inbox, news: News, version: int) -> Inbox:
        if not len(news.node):
            return inbox
        false = torch.from_numpy(self.liars.false[news.node])

        def chose(rows: Tensor) -> None:
            self.chosen += len(rows)
            self.false = self.false + sent(false, rows.device)[rows].sum()  # nobody waits for a GPU

        return replace(inbox, parts=self.liars.heard(inbox.parts, news.node, news.job), chose=chose)

    @property
    def share(self) -> float | None:
        """Attackers' part of all messages that averages chose since the start; None where they chose none."""
        return int(self.false) / self.chosen if self.chosen else None
