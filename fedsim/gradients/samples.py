"""What gradients are taken on."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

LossOf = Callable[..., Tensor]  # (task, outputs, targets, weight) -> one number; it may take `mask` too


class Samples(NamedTuple):
    """Samples for rows of models: inputs [L, B, ...], targets [L, B, ...], weight [L, B] (0 is padding).

    `extra` has what only some need, a row each: `key` (int64 [L]) where models draw random numbers, `buffers` [L, b] where they have
    running statistics, which gradients write to, `mask` (bool [L, C]) where losses ask which classes nodes have.
    """

    inputs: Tensor
    targets: Tensor
    weight: Tensor
    extra: Mapping[str, Tensor] = {}

    def flat(self) -> list[Tensor]:
        """All tensors in one order."""
        return [self.inputs, self.targets, self.weight, *self.extra.values()]
