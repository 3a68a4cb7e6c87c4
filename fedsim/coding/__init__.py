"""Gradient codes: who computes which sums of which chunks when, and how exact gradients come out though some workers are slow."""

from fedsim.coding.scheme import Scheme

__all__ = ["Scheme"]
