"""Who starts in the places of those who return: by keyed lot among all who are there and idle then."""

# m: places, n: nodes

from collections.abc import Iterator
from itertools import chain

import numpy as np
from torch import Tensor

from fedsim.base.clock import Arrivals, Ints
from fedsim.base.keys import below
from fedsim.federation.field import There


def lots(job: Ints, returning: Arrivals, there: There | None, keys: Tensor) -> Ints:
    """For each returning node, one after the other, who starts in its place by these keys, int64 [m]; ends early where nobody can.

    `job` [n] is below 0 of nodes that are idle already.
    """
    started, free = list[int](), job < 0
    for node, time in zip(returning.node.tolist(), returning.time.tolist(), strict=True):
        free[node] = True
        candidates = np.flatnonzero(free if there is None else free & there(time))
        if not len(candidates):
            break
        started.append(int(candidates[int(below(keys[len(started)], 1, len(candidates)))]))
        free[started[-1]] = False
    return np.array(started, dtype=np.int64)


def first(job: Ints, returning: Ints, keys: Tensor) -> Ints:
    """The same where all are there and many idle: the first idle node of each place's keyed numbers, at no cost over the others."""
    drawn, back, started = below(keys, 16, len(job)).tolist(), set[int](), dict[int, None]()
    for place, node in enumerate(returning.tolist()):
        back.add(node)
        numbers = chain(drawn[place], _further(keys[place], 16, len(job)))
        chosen = next(one for one in numbers if one not in started and (one in back or job[one] < 0))
        started[chosen] = None
    return np.array(list(started), dtype=np.int64)


def _further(key: Tensor, after: int, nodes: int) -> Iterator[int]:
    """The keyed numbers below `nodes` after the first so many, without end."""
    while True:
        yield from below(key, 2 * after, nodes)[after:].tolist()
        after *= 2
