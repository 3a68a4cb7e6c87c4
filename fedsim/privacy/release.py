"""What a server lets out of private messages: noisy means, and how often each client stood in them."""

from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from fedsim.base.devices import sent
from fedsim.base.errors import SettingError
from fedsim.base.keys import Word, fold, normal
from fedsim.method.companion import Merged
from fedsim.method.inbox import Inbox, Weights
from fedsim.method.privacy import Account
from fedsim.privacy.noisy import Adapt, Noisy, shrink
from fedsim.privacy.spent import epsilon, noise_for, releases_for
from fedsim.schedule.base import Schedule
from fedsim.schedule.news import News
from fedsim.schedule.verbs import Verbs
from fedsim.task.task import Task


class Release(Account):
    """The Gaussian mechanism at a server, and its account, which depends on no data.

    Where coins decide who is asked (Poisson sampling), every merge is a release, also one to which nobody came, and all clients spend
    alike, less for the secret of who was asked. Elsewhere who takes part counts as known: only merges with messages are releases, and
    each client spends where it stood; a client twice in one merge could move it twice as far, which costs as much as four.
    """

    keeps: ClassVar[tuple[str, ...]] = ("times", "clip")
    coin: float | None  # the greatest chance of any client to be asked, where coins that nobody sees decide

    def __init__(self, privacy: Noisy, fed: Verbs, schedule: Schedule, task: Task, planned: int | None = None) -> None:
        """`planned` merges, over which `privacy.epsilon` may be spent. Raises SettingError where the setting has no meaning."""
        if task.sends_buffers:
            raise SettingError("privacy", "BatchNorm's running statistics would travel without noise; set `task.buffers: local`")
        if privacy.delta * fed.nodes >= 1:
            raise SettingError(
                "privacy.delta", f"{privacy.delta:g} for {fed.nodes:,} clients; below {1 / fed.nodes:g} protects each of them"
            )
        if (liars := fed.nature.liars) is not None and liars.attackers.overhears:
            raise SettingError("world.attackers", f"`{liars.attackers.name}` knows what others send, which `privacy` lets nobody know")
        try:
            self.expected = schedule.expected(fed)
        except ValueError as error:
            raise SettingError("privacy", f"the noisy sum is divided by the messages expected: {error}") from error
        if self.expected <= 0:
            raise SettingError("privacy", "nobody is ever asked")
        self.privacy: Noisy = privacy
        self.key, self.shared = fed.key("privacy"), fed.key("shared")
        self.coin, self.reserve = schedule.coin(fed), schedule.repeats() ** 2
        self.secret = self.coin is not None  # where coins are secret, so is that nobody came
        certain = self.coin is not None or (self.expected == fed.nodes and self.reserve == 1)
        self.noise, self.clip = self._noise(planned, certain), privacy.clip
        self.adapt: Adapt | None = privacy.adapt
        noises = self.adapt.split(self.noise, self.expected) if self.adapt else (self.noise, 0.0)
        self.spread, self.counted = noises  # of sums, and of how many messages were short
        self.times = np.zeros(1 if self.coin is not None else fed.nodes, dtype=np.int64)

    def _noise(self, planned: int | None, certain: bool) -> float:
        """The noise multiplier."""
        privacy = self.privacy
        if privacy.noise is not None:
            return privacy.noise
        assert privacy.epsilon is not None
        if planned is None:
            raise SettingError("privacy.epsilon", "needs `stop.rounds`, from which the noise follows; or set `privacy.noise`")
        if not certain:
            need = "under `rounds` with `sampling: bernoulli` or `cohort: all`"
            raise SettingError(
                "privacy.epsilon", f"how often a client takes part is known beforehand {need}; elsewhere set `privacy.noise`"
            )
        try:
            return noise_for(privacy.epsilon, privacy.delta, planned, self.coin)
        except ValueError as error:
            raise SettingError("privacy.epsilon", str(error)) from error

    @property
    def most(self) -> int:
        """Releases that the most frequent client has spent."""
        return int(self.times.max())

    @property
    def epsilon(self) -> float:
        return epsilon(self.noise, self.privacy.delta, self.most, self.coin)

    def until(self, budget: float) -> int:
        """The value of `most` from which on one more merge could cost more than the budget. Raises SettingError where the first could."""
        found = releases_for(budget, self.noise, self.privacy.delta, self.coin) - self.reserve + 1
        if found < 1:
            first = epsilon(self.noise, self.privacy.delta, self.reserve, self.coin)
            raise SettingError("stop.epsilon", f"the first merge could cost {first:.3g} already; more `privacy.noise` costs less")
        return found

    def used(self, budget: float) -> float:
        return self.most / self.until(budget)

    def seen(self, inbox: Inbox, news: News, version: int) -> "PrivateInbox":
        return PrivateInbox(inbox, self, version)

    def merged(self, merged: Merged) -> None:
        if self.coin is not None:
            self.times += 1
        else:
            who, count = np.unique(merged.news.node, return_counts=True)
            self.times[who] += count**2
        if self.adapt:
            self._adapt(merged)

    def _adapt(self, merged: Merged) -> None:
        """The clip of the next merge, by how many messages of this one were no longer than its own."""
        short = float((shrink(merged.parts, self.clip) == 1).sum()) if merged.parts else 0.0
        noise = self.counted * float(normal(fold(self.key, merged.version, "within"), 1)[0])
        within = 0.5 + (short - 0.5 * len(merged.news.node) + noise) / self.expected  # halves, so that one counts for no more than 1/2
        assert self.adapt
        self.clip = self.adapt.after(self.clip, within)

    def noisy(self, sums: Tensor, *words: Word) -> Tensor:
        """Sums [1, ...] of clipped messages as the mean that is let out."""
        key = sent(fold(self.key, *words), sums.device)
        noise = normal(key, sums.numel()).view_as(sums).to(sums.dtype)
        return (sums + self.spread * self.clip * noise) / self.expected


class PrivateInbox(Inbox):
    """Messages of which only noisy means are seen, each part's once: asked again, it is the same. Everything else raises ValueError.

    `age` [m] is there for discounts, and says nothing where coins decide: all are 0. `shared` [1] is the key of jobs that began just now.
    """

    def __init__(self, inbox: Inbox, release: Release, version: int) -> None:
        vars(self).update(age=inbox.age, layout=inbox.layout)
        vars(self).update(_inbox=inbox, _release=release, _version=version, _factor=shrink(inbox.parts, release.clip))

    def __getattr__(self, name: str) -> Any:
        raise ValueError(f"it needs the messages' `{name}`, but `privacy` lets out noisy means only")

    def __getitem__(self, name: str) -> Tensor:
        return self.__getattr__(name)  # type: ignore[no-any-return]

    @property
    def count(self) -> float:
        return self._release.expected  # type: ignore[no-any-return]

    @property
    def shared(self) -> Tensor:
        return fold(self._release.shared, self._version)[None].to(self._inbox.sender.device)

    def sum(self, name: str, weight: Tensor | None = None) -> Tensor:
        raise ValueError(f"it sums `{name}` with weights of its own, but `privacy` lets out noisy means only")

    def mean(self, name: str, weights: Weights = "samples", factor: Tensor | None = None) -> Tensor:
        """[1, ...]: the sum of clipped messages, with noise, by the number expected."""
        if weights == "samples":
            raise ValueError("under `privacy` all messages count the same: set `strategy.weights: uniform`")
        weight = self._factor
        if factor is not None:
            if not bool(((factor >= 0) & (factor <= 1)).all()):
                raise ValueError("a factor beyond 0 to 1 would lengthen clipped messages")
            weight = weight * factor
        return self._release.noisy(self._inbox.sum(name, weight), self._version, name)  # type: ignore[no-any-return]
