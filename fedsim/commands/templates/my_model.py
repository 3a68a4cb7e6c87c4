"""MyModel: a model of your own.

Any `nn.Module` class will do. Its arguments with types and defaults are its settings; `input_shape` and `outputs` are given, not set. Many
clients' models are run at once, so `forward` must not look at values (`if x.sum() > 0`) nor change x in place.
"""

from math import prod

from torch import Tensor, nn


class MyModel(nn.Module):
    """Two layers with a shortcut around them.

    `input_shape` is the shape of one sample, `outputs` the number of classes, `width` the units within.
    """

    def __init__(self, input_shape: tuple[int, ...], outputs: int, width: int = 32) -> None:
        super().__init__()
        size = prod(input_shape)
        self.inner = nn.Linear(size, width)
        self.outer = nn.Linear(width, outputs)
        self.shortcut = nn.Linear(size, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, *input_shape] -> [B, outputs]"""
        flat = x.flatten(1)
        return self.outer(self.inner(flat).relu()) + self.shortcut(flat)
