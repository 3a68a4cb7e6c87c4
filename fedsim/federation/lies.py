"""Attackers' messages: what reaches a hearer in the place of what they computed."""

from dataclasses import replace

from fedsim.method.companion import Companion
from fedsim.method.inbox import Inbox
from fedsim.schedule.news import News
from fedsim.world.attackers import Liars


class Lies(Companion):
    """All messages of a merge are in the attackers' sight."""

    def __init__(self, liars: Liars) -> None:
        self.liars = liars

    def seen(self, inbox: Inbox, news: News, version: int) -> Inbox:
        return replace(inbox, parts=self.liars.heard(inbox.parts, news.node, news.job)) if len(news.node) else inbox
