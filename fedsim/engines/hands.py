"""Several devices of one process, a thread each: pieces of work are dealt out in turn, so that who computes what is always the same."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from fedsim.base.devices import current, sent
from fedsim.base.rows import Rows
from fedsim.engines.jobs import Jobs, Replies

Compute = Callable[[Jobs], Replies]


class Hands:
    """A thread for each device. Threads are the devices' own, and so are, by torch's rules, their streams."""

    def __init__(self) -> None:
        self.devices: list[torch.device] = []
        self.threads: list[ThreadPoolExecutor] = []

    def add(self, device: torch.device) -> None:
        """One more; the first is the one that gets the replies."""
        self.devices.append(device)
        self.threads.append(ThreadPoolExecutor(1, thread_name_prefix=f"fedsim {device}"))

    def map(self, computes: Sequence[Compute], pieces: Sequence[Jobs], keep: Callable[[int, Replies], Any]) -> None:
        """Piece i is computed by `computes[i mod devices]`; `keep` gets its number and its replies, in order.

        All that is sent is sent before anything is computed: a copy waits for what was asked of a device before it. Raises what a piece
        raised, of several the first, once none is at work.
        """
        hands = len(self.devices)
        moved = [_jobs(piece, self.devices[place % hands]) for place, piece in enumerate(pieces)]
        asked = [self.threads[at % hands].submit(_run, computes[at % hands], self.devices[at % hands], one) for at, one in enumerate(moved)]
        errors = [one.exception() for one in asked]
        for error in errors:
            if error is not None:
                raise error
        for place, one in enumerate(asked):
            done = one.result()
            keep(place, Replies(*(there(rows, self.devices[0]) for rows in done)))

    def close(self) -> None:
        """Ends the threads."""
        for thread in self.threads:
            thread.shutdown()


def _run(compute: Compute, device: torch.device, jobs: Jobs) -> Replies:
    with current(device):
        return compute(jobs)


def _jobs(jobs: Jobs, device: torch.device) -> Jobs:
    link = None if jobs.link is None else there(jobs.link, device)
    return Jobs(jobs.node, jobs.turn, jobs.round, there(jobs.received, device), there(jobs.memory, device), link)


def there(rows: Rows, device: torch.device) -> Rows:
    """Rows on a device; one that stands for many travels once."""
    moved = {}
    for name, tensor in rows.items():
        one = len(tensor) > 1 and tensor.stride(0) == 0
        moved[name] = sent(tensor[:1], device).expand_as(tensor) if one else sent(tensor, device)
    return moved
