"""Schedules as a few plain lines each, to hold the federation's clock against: any exact numbers (int, Fraction) as times."""

import heapq
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

Merges = list[tuple[Any, list[tuple[int, int]]]]  # time, and (sender, age) in the order of the senders


def jobs(nodes: int, percent: int = 80) -> list[Fraction]:
    """FedFix's F-`percent`: seconds of each client's job."""
    return [1 - Fraction(percent, 100) * i / (nodes - 1) for i in range(nodes)]


def every(tau: Sequence[Any], interval: Any, end: Any) -> Merges:
    """FedFix: at each multiple of the interval all who are back are merged and start again."""
    back, began = list(tau), [0] * len(tau)
    out: Merges = []
    for version in range(int(end // interval)):
        now = (version + 1) * interval
        done = [i for i, time in enumerate(back) if time <= now]
        out.append((now, [(i, version - began[i]) for i in done]))
        for i in done:
            back[i], began[i] = now + tau[i], version + 1
    return out


def together(tau: Sequence[Any], size: int, end: Any) -> Merges:
    """The `size` earliest are merged when the last of them is back, and start again together."""
    queue, began = [(time, i) for i, time in enumerate(tau)], [0] * len(tau)
    out: Merges = []
    heapq.heapify(queue)
    while True:
        first = [heapq.heappop(queue) for _ in range(size)]
        now = first[-1][0]
        if now > end:
            return out
        out.append((now, sorted((i, len(out) - began[i]) for _, i in first)))
        for _, i in first:
            began[i] = len(out)
            heapq.heappush(queue, (now + tau[i], i))


def buffered(tau: Sequence[Any], size: int, end: Any) -> Merges:
    """FedBuff with everybody at work: who returns starts again at once; each `size` arrivals make a merge."""
    queue = [(time, i, 0) for i, time in enumerate(tau)]
    out: Merges = []
    buffer: list[tuple[int, int]] = []
    heapq.heapify(queue)
    while queue[0][0] <= end:
        now, i, began = heapq.heappop(queue)
        buffer.append((i, len(out) - began))
        if len(buffer) == size:
            out.append((now, sorted(buffer, key=lambda message: message[0])))
            buffer = []
        heapq.heappush(queue, (now + tau[i], i, len(out)))
    return out
