"""How often nodes take part where that has to be tried out."""

import numpy as np

from fedsim.base.clock import EventQueue, Ints
from fedsim.settings.values import Floats


def merged_together(durations: Ints, size: int, merges: int) -> Floats:
    """Times a merge that each node takes part where the `size` earliest are merged and restarted together; durations [n] in ticks."""
    if merges > 1_000_000:
        raise ValueError(f"frequencies of {len(durations):,} nodes that are merged together take too long to find; they can be estimated")
    queue, count = EventQueue(), np.zeros(len(durations))
    queue.push(durations, np.arange(len(durations)), durations * 0)
    for _ in range(merges):
        first = queue.peek(size)
        queue.drop(size)
        count[first.node] += 1
        queue.push(first.time[-1] + durations[first.node], first.node, first.serial)
    return count / merges
