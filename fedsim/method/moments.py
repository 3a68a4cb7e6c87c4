"""What optimizers and clips know of earlier steps, as nodes remember it from job to job: under names of its own, in 32 bits or in 8."""

# m: nodes, d: parameters

import torch

from fedsim.base.rows import Rows
from fedsim.codecs.blocks import quantised, restored

LONG = ("velocity", "mean", "square")  # as long as models: they are what is stored in 8 bits
MOMENTS = (*LONG, "steps", "norms", "normed")  # all that there are
POSITIVE = ("square",)  # 0 or more: no code is spent on signs
BLOCK = 2048  # numbers that share a greatest
KEPT, CODES, GREATEST = "optimizer ", " codes", " greatest"  # what their names begin and end with among what nodes remember


def beside(rows: Rows) -> Rows:
    """What a method itself remembers, beside the moments."""
    return {name: part for name, part in rows.items() if not name.startswith(KEPT)}


def kept(rows: Rows, dtype: torch.dtype) -> Rows:
    """The moments among what nodes remember; those in 8 bits become numbers of this type."""
    found: Rows = {}
    for name, part in rows.items():
        plain = name.removeprefix(KEPT)
        if plain == name or plain.endswith(GREATEST):
            continue
        if plain.endswith(CODES):
            plain = plain.removesuffix(CODES)
            part = restored(part, rows[KEPT + plain + GREATEST], BLOCK, plain not in POSITIVE).to(dtype)
        found[plain] = part
    return found


def keeping(moments: Rows, eight: bool = False) -> Rows:
    """Moments under the names by which nodes remember them; long ones [m, d] as d bytes a row, and four a block, where they are `eight`.

    8-bit optimizers: Dettmers, Lewis, Shleifer, Zettlemoyer 2022, https://arxiv.org/abs/2110.02861. Blocks are the paper's, but run over a
    row whatever parameters it has; squares have the book without signs, as in the authors' code. A square that is not 0 does not become 0,
    which would make the step along a mean that is not 0 as long as 1 / eps. Moments are stored so after each job, not after each step.
    """
    found: Rows = {}
    for name, part in moments.items():
        if eight and name in LONG:
            found[KEPT + name + CODES], found[KEPT + name + GREATEST] = quantised(part, BLOCK, name not in POSITIVE)
        else:
            found[KEPT + name] = part
    return found
