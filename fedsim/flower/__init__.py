"""Flower apps on fedsim's network and in its simulated worlds; and fedsim as a Flower app: `server`, `client`."""

from importlib import import_module
from typing import Any

__all__ = ["client", "server"]  # where Flower looks before it runs anything


def __getattr__(name: str) -> Any:
    """`server` and `client` are made when they are asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return globals().setdefault(name, import_module(f"fedsim.flower.{name}_app").made())
