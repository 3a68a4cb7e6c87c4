"""Stacked gradients whose convolutions are all computed one way, whatever their shapes."""

from math import inf

from fedsim.gradients.plans import Stacked


class Grouped(Stacked):
    """Each is one grouped convolution of all models."""

    name = "grouped"
    places = 0


class Unfolded(Stacked):
    """Each is a product of patches and kernels."""

    name = "unfolded"
    places = inf
