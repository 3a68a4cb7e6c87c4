"""Two-state chains (Gilbert 1960, "Capacity of a burst-noise channel"; Elliott 1963) over a node's own jobs."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.base.clock import Ints
from fedsim.base.keys import fold, interior
from fedsim.settings.values import Floats

BLOCK = 16  # turns looked back at once


def bad(key: Tensor, nodes: Ints, turn: Ints, enter: Floats, leave: Floats) -> NDArray[np.bool_]:
    """bool [m]: is the chain of node [m] in its bad state at its `turn` [m]? It enters and leaves with these chances [nodes] a turn.

    A pure function of the key, nothing is kept: one number u decides at each turn what both states would do, bad becomes bad for
    u < 1 - leave and good becomes bad for u < enter. Below both everybody is bad, above both good, whatever was before, so only
    the turns since the last such one count (1 / (enter + leave) of them, or half of a swap). At turn 0 it is bad with the chance
    enter / (enter + leave) of the long run.
    """
    gain, stay = enter[nodes], 1 - leave[nodes]
    low, high = np.minimum(gain, stay), np.maximum(gain, stay)
    swaps = gain > stay  # what lies between is no change, or a swap
    state, odd = np.zeros(len(nodes), dtype=bool), np.zeros(len(nodes), dtype=bool)
    waiting, back = np.arange(len(nodes)), 0
    while len(waiting):
        turns = turn[waiting, None] - back - np.arange(BLOCK)
        at = torch.from_numpy(np.maximum(turns, 0))
        u = interior(fold(key, torch.from_numpy(nodes[waiting])[:, None], at), 1)[..., 0].numpy()
        total = enter[nodes[waiting]] + leave[nodes[waiting]]
        share = np.divide(enter[nodes[waiting]], total, out=np.zeros(len(waiting)), where=total > 0)
        start = turns <= 0
        below = np.where(start, u < share[:, None], u < low[waiting, None])
        above = np.where(start, ~below, u >= high[waiting, None])
        known = below | above
        done, place = known.any(1), known.argmax(1)
        passed = np.where(done, place, BLOCK)
        odd[waiting] ^= swaps[waiting] & (passed % 2 == 1)
        ended = waiting[done]
        state[ended] = below[done, place[done]] ^ odd[ended]
        waiting, back = waiting[~done], back + BLOCK
    return state
