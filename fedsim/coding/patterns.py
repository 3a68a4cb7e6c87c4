"""Models of who is slow when, asked at the end of each round: `slow` is bool [rounds, n], the last row being this round."""

import numpy as np

from fedsim.base.clock import Ints
from fedsim.coding.codes import Bools


def absent(workers: int, came: Ints) -> Bools:
    """bool [1, n]: a round's row, of who came."""
    slow = np.ones((1, workers), dtype=bool)
    slow[0, came] = False
    return slow


def few(slow: Bools, stragglers: int) -> bool:
    """At most so many this round."""
    return int(slow[-1].sum()) <= stragglers


def bursty(slow: Bools, burst: int, stragglers: int) -> bool:
    """The (B, W, lambda)-bursty model on a window of W rounds: at most lambda workers are slow, each within B rounds.

    Asked after each round: then all windows conform, since a burst that is too long shows in its last round.
    """
    again = slow[-1] & slow[: max(len(slow) - burst, 0)].any(0)
    return int(slow.any(0).sum()) <= stragglers and not again.any()


def arbitrary(slow: Bools, times: int, stragglers: int) -> bool:
    """The (N', W', lambda')-arbitrary model on a window of W' rounds: at most lambda' workers are slow, each at most N' times."""
    return int(slow.any(0).sum()) <= stragglers and int(np.max(slow.sum(0), initial=0)) <= times
