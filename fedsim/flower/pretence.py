"""A ServerApp's own code sees the virtual clock: its `time.sleep` moves it, and `time.time` and the like tell it."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from fedsim.flower import private
from fedsim.flower.virtual import EPOCH, VirtualGrid

SINCE = {"time": EPOCH, "monotonic": 0, "perf_counter": 0}  # what each tells when the virtual clock is at 0


@contextmanager
def virtual_time(grid: VirtualGrid, folder: Path, working: Callable[[], bool]) -> Iterator[None]:
    """Meanwhile code of this thread that lies in `folder` has the grid's time, unless a ClientApp is `working`.

    All else, Flower itself and the libraries that the app uses, has the host's; but Flower's strategies wait for nodes by the grid's.
    """
    root, server, going = str(folder.resolve()) + os.sep, threading.get_ident(), [True]
    usual: dict[str, Any] = {name: getattr(time, name) for name in ("sleep", *SINCE, *(f"{name}_ns" for name in SINCE))}

    def own() -> bool:
        """Whether who called the function that asks is the ServerApp's code."""
        if not going or threading.get_ident() != server or working():
            return False
        return sys._getframe(2).f_code.co_filename.startswith(root)

    def sleep(seconds: float) -> None:
        if not own():
            usual["sleep"](seconds)
        elif seconds < 0:
            raise ValueError("sleep length must be non-negative")
        else:
            grid.advance(seconds)

    def telling(name: str, factor: int) -> Callable[[], Any]:
        since, real = SINCE[name.removesuffix("_ns")], usual[name]

        def now() -> Any:
            if not own():
                return real()
            return since + grid.seconds if factor == 1 else (since * factor + grid.now * factor // grid.facts.nature.per_second)

        return now

    ours = {"sleep": sleep} | {name: telling(name, 1) for name in SINCE} | {f"{name}_ns": telling(f"{name}_ns", 10**9) for name in SINCE}
    taken = [(vars(module), name, usual[value.__name__]) for module, name, value in _taken(root, [*usual.values()])]
    for name, function in ours.items():
        setattr(time, name, function)
    for names, name, function in taken:
        names[name] = ours[function.__name__]
    try:
        with private.strategies_sleep(grid.wait):
            yield
    finally:
        going.clear()  # for who has taken them by name
        for name, function in usual.items():
            setattr(time, name, function)
        for names, name, function in taken:
            names[name] = function


def _taken(root: str, functions: list[Any]) -> list[tuple[ModuleType, str, Any]]:
    """Which of some functions modules under `root` have by names of their own."""
    modules = [module for module in [*sys.modules.values()] if str(getattr(module, "__file__", None) or "").startswith(root)]
    return [(m, name, value) for m in modules for name, value in vars(m).items() if any(value is one for one in functions)]
