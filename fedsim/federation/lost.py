"""Messages between hearers that get lost on their way."""

import torch
from torch import Tensor

from fedsim.base.clock import Ints
from fedsim.base.keys import fold, uniform
from fedsim.method.companion import Companion
from fedsim.settings.values import Floats
from fedsim.topology.mixing import Keep, Mixing


class LostMessages(Companion):
    """`faults.lost` of the sender; where weights are symmetric, both ways. Weights stay stochastic."""

    def __init__(self, lost: Floats, stochastic: Keep, seed: Tensor | int) -> None:
        self.lost, self.stochastic, self.key = lost, stochastic, fold(seed, "lost")

    def passed(self, mixing: Mixing, who: Ints, version: int) -> Mixing:
        hearer, sender = (who[ends] for ends in mixing.edges)
        lots = uniform(fold(self.key, version, torch.from_numpy(sender), torch.from_numpy(hearer)), 1)[:, 0].double().numpy()
        gone = lots < self.lost[sender]
        return mixing.without(mixing.either_way(gone) if mixing.symmetric else gone, self.stochastic)
