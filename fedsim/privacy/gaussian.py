"""What a message may tell of its client: clipping and noise, and what a run's releases cost of a privacy budget.

Guarantee with `unit: client` (that of `unit: sample` stands in `dpsgd`): (epsilon, delta)-differential privacy of the sequence of models
that the server makes, at the level of clients. Neighbours are two federations of which one is the other with all messages of ONE client
replaced by zeros, whatever data it has (zero-out: Kairouz et al. 2021, arXiv 2103.00039, section 2; under Poisson sampling the same as
adding or removing a client). Who is asked when, how long work takes and how many samples a client has count as known, but for the coins of
Poisson sampling, which nobody sees. What a simulation measures and writes down is not released, and its noise follows from the scenario's
seed: who knows that, can take it away.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from fedsim.method.local import Local
from fedsim.method.privacy import Account
from fedsim.method.strategy import Strategy
from fedsim.privacy.dpsgd import PrivateLocal, Spending, check
from fedsim.privacy.noisy import Noisy
from fedsim.privacy.release import Release
from fedsim.schedule.verbs import Verbs
from fedsim.task.task import Task


@dataclass(frozen=True)
class Gaussian(Noisy):
    """Clipping and Gaussian noise: of clients' messages at the server (DP-FedAvg), or of samples' gradients at each node (DP-SGD).

    `unit: client`: the server adds noise to the sum of clipped messages and divides by the messages expected, not those come. All parts of
    a message are clipped as one vector, by its client before it travels and again by the server, or there alone where `adapt` lets the
    clip follow the messages. Only such noisy means reach the
    strategy: what needs more than a mean of equally weighted messages is refused.

    `unit: sample`: nodes draw batches by coins of chance batch / samples, clip each sample's gradient, add noise to their sum and divide by
    the samples expected. It needs no server; what a method makes of gradients is free, what needs more of samples is refused.
    """

    source: ClassVar[str] = "McMahan et al. 2018; Abadi et al. 2016"

    @property
    def at_server(self) -> bool:
        return self.unit == "client"

    def check(self, strategy: "Strategy", task: "Task") -> None:
        if self.unit == "sample":
            check(self, strategy, task)

    def local(self, gradients: int, *args: Any, **named: Any) -> Local:
        if self.unit == "client" or self.plain:
            return super().local(gradients, *args, **named)
        return PrivateLocal(self, gradients, *args, **named)

    def account(self, fed: Verbs, strategy: Strategy, task: Task, planned: int | None) -> Account:
        if self.unit == "client":
            return Release(self, fed, strategy.schedule, task, planned)
        return Spending(self, fed, strategy, task, planned)
